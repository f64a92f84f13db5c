// Package vmtest runs programs in real virtual machines, for tests of what a
// developer's machine or container cannot offer: device-mapper, a disk that
// outlives its machine, a power cut. Only tests import it.
//
// A machine is qemu with Debian's cloud kernel and an initramfs; it has no root
// disk and no network, and /dev/vdb is its first disk. The kernel, its modules
// and the programs come from Debian's archive, are fetched once by mmdebstrap,
// and are kept in bin/vm until make clean. KVM is used where it works, and
// emulation everywhere else, where a machine is ready after some four seconds.
// Only mmdebstrap may need root, where users have no user namespaces.
//
// The usual program is the binary of a Go test:
//
//	vmtest.Enabled(t)
//	data := vmtest.NewDisk(t, 64<<20)
//	bin := vmtest.BuildTest(t, "./cdh/mount")
//	vmtest.Run(t, vmtest.Config{
//		Cmd:   []string{"/mount.test", "-test.v", "-test.run", "^TestVM"},
//		Files: map[string]string{"/mount.test": bin},
//		Disks: []*vmtest.Disk{data},
//	})
//
// A machine can boot an image of podvm/image, too, by UEFI firmware from its disk:
// see Config.Boot and ImageTree.
//
// The guest is trusted with everything of the test, and with nothing of the
// host but its disks.
package vmtest
