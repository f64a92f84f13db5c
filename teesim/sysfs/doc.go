// Package sysfs is the part of /sys that the guest of a TEE uses, as a FUSE file
// system: configfs-tsm, which makes attestation reports, the measurement
// registers of TDX, and fixed files such as the event log of the firmware.
//
// Data path: a simulated machine mounts it at its sys/. Programs of the guest,
// sealpod's attesters among them, use it as they use the kernel's. Reports come
// from a Provider and registers from a Registers, both of a simulated TEE.
//
// Trust: for development and tests only, since whoever mounts it makes the
// evidence. The programs that use it are not trusted: what they keep here is
// capped, and none of them can make the others wait longer than a report takes.
//
// What the kernel does and this does not: files may be seeked, a chmod or chown
// is refused, and a file system type is FUSE's. The kernel takes over inblob
// when its last file descriptor is closed; FUSE tells of that too late, so here
// it is then or, once a descriptor was closed, when somebody looks at the entry.
// A write of no bytes does nothing; the kernel's answers EFAULT.
//
// Sources: Linux drivers/virt/coco/guest/{report.c,tsm-mr.c} (drivers/virt/coco/tsm.c
// before 6.16), drivers/virt/coco/{tdx-guest,sev-guest}, fs/configfs and
// fs/sysfs at 6.16; Documentation/ABI/testing/configfs-tsm-report and
// sysfs-devices-virtual-misc-tdx_guest.
package sysfs
