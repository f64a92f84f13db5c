package image

import (
	"regexp"
	"strings"
)

// Suite is Debian's release the image is made of. It has systemd 257 and a
// kernel with configfs-tsm.
const Suite = "trixie"

// Snapshot is the state of Debian's archive that images are made of unless
// Options say otherwise, as snapshot.debian.org counts.
const Snapshot = "20261124T000000Z"

// packages are what the guest runs, with all they depend on.
var packages = []string{
	"linux-image-cloud-amd64", "systemd-boot-efi",
	"systemd", "systemd-repart", "systemd-resolved", "udev", "dbus", "kmod",
	"base-files", "base-passwd", "netbase", "coreutils", "mount", "util-linux", "ca-certificates",
	"iproute2", "iptables",
	"cryptsetup-bin", "dmsetup", "e2fsprogs", "xfsprogs", "gocryptfs", "fuse3",
	"libseccomp2", "libtss2-tcti-device0t64",
}

// debugPackages are for the profile Debug.
var debugPackages = []string{"bash", "procps", "less", "strace", "tpm2-tools"}

// initrdModules are what it takes to read the disk on the clouds and on qemu.
var initrdModules = []string{
	"virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "sd_mod",
	"hv_vmbus", "hv_storvsc", "pci_hyperv",
	"dm_verity", "squashfs", "sha256_ssse3",
}

// earlyModules are what the daemons have the kernel load otherwise, one program at
// a time, once there is user data and the host waits: for the pod's network, for
// encrypted storage, and for containers.
var earlyModules = []string{
	"vxlan", "nft_ct", "dm_crypt", "dm_integrity", "authenc", "xts", "aesni_intel", "algif_skcipher", "algif_hash", "overlay", "isofs",
}

// dropped is what packages bring that no pod VM needs: documentation, Debian's
// package management and interpreters with what they run.
var dropped = regexp.MustCompile(`^(` + strings.Join([]string{
	`boot/.*`, `var/.*`, `home/.*`, `tmp/.*`, `dev/.*`, `run/.*`, `proc/.*`, `sys/.*`,
	`etc/(apt|dpkg|alternatives|adduser\.conf|deluser\.conf|debconf\.conf|cron.*|init\.d|rc.\.d|logrotate\.d|kernel|python3.*|ssh|skel|update-motd\.d|profile.*|bash.*|initramfs-tools|selinux|ca-certificates.*|hostname|resolv\.conf|fstab|machine-id|issue.*|pam\.d|pam\.conf|login\.defs|subuid|subgid|default/.*|e2scrub\.conf|mime\.types)(/.*)?`,
	`usr/share/(doc|doc-base|man|info|locale|lintian|bash-completion|zsh|fish|perl5|perl|bug|initramfs-tools|common-licenses|i18n|zoneinfo|pixmaps|applications|polkit-1|python3|debconf|menu|keyrings|base-files|base-passwd|binfmts|adduser|gdb|mime|vim|readline|tabset|dict|openssl|consolefont|consoletrans|keymaps|nano|linux|awk|dpkg|sensible-utils|dracut|popularity-contest)(/.*)?`,
	`usr/lib/(apt|dpkg|klibc|python3.*|grub|init|initcpio|kernel|pcrlock\.d|modprobe\.d/aliases\.conf|tc|sftp-server|mime|valgrind|systemd/boot|systemd/user.*|systemd/ukify|xfsprogs|e2fsprogs|environment\.d|rpm|cruft.*|lsb|sasl2|dracut|linux-boot-probes)(/.*)?`,
	`usr/lib/x86_64-linux-gnu/(gconv|perl.*|libicu.*|libpython.*|libperl.*|e2fsprogs|bits|libslang.*|libdb-5.*|libssl3/.*)(/.*)?`,
	`usr/(s?bin)/(apt.*|dpkg.*|deb-.*|debconf.*|perl.*|python3?.*|py3.*|bash|bashbug|rbash|xfs_scrub.*|xfs_admin|xfs_db|xfs_io|bootctl|kernel-install|ukify|systemd-cryptenroll|gpasswd|passwd|chsh|chfn|chage|expiry|newgrp|sg|su|runuser|sulogin|agetty|getty|login|vipw|vigr|useradd|usermod|userdel|group.*|pw.*|grp.*|chpasswd|chgpasswd|newusers|faillog|lastlog|nologin-.*|run0|systemd-nspawn|update-.*|initramfs.*|mkinitramfs|linux-.*|openssl|c_rehash|tar|cpio|gpg.*|telinit|e4crypt|fsck\.cramfs|mkfs\.(bfs|cramfs|minix)|fdisk|sfdisk|cfdisk|script.*|wall|write|mesg|last|lastb|ul|look|rev|col.*|more|hardlink|setterm|whereis|wdctl|rtcwake|swap.*|mkswap|unshare-.*|devlink|rdma|tipc|vdpa|dcb|genl|arpd|rtmon|rtacct|lnstat|nstat|ifstat|routel|routef|ctstat|rtstat|bridge-.*|ss)`,
	`usr/lib/udev/rules\.d/60-tpm-udev\.rules`, `usr/lib/tmpfiles\.d/(20-systemd-(shell-extra|ssh-generator)|credstore|debian|home|legacy|libselinux1|passwd|provision|systemd-nologin|systemd-pstore|x11)\.conf`,
	`usr/(local|games|src|include|libexec/(dpkg|sudo))(/.*)?`,
}, "|") + `)$`)

// droppedUnits are of no use to a machine that nobody logs in to, whose /etc is
// read-only, and whose PCRs nobody may change who is not asked to.
var droppedUnits = regexp.MustCompile(`^(` + strings.Join([]string{
	`systemd-pcr.*`, `systemd-tpm2-setup.*`, `tpm2\.target-.*`,
	`systemd-firstboot.*`, `systemd-sysusers.*`, `systemd-hwdb-update.*`, `systemd-journal-catalog-update.*`,
	`systemd-update-done.*`, `ldconfig.*`, `systemd-machine-id-commit.*`, `first-boot-complete.*`,
	`systemd-boot-.*`, `systemd-bless-boot.*`, `systemd-battery-check.*`, `systemd-bsod.*`, `systemd-storagetm.*`,
	`systemd-(sysext|confext|sysupdate|creds|hostnamed|localed|timedated|homed|userdbd|machined|importd|initctl|rfkill|backlight@|quotacheck.*|binfmt|hibernate.*|hybrid-sleep|suspend.*|logind|ask-password.*|user-sessions|random-seed|pstore|growfs.*|journalctl)[.@].*`,
	`dbus-org\.freedesktop\.(hostname1|locale1|login1|timedate1)\.service`,
	`(console-|container-|serial-)?getty.*`, `autovt@.*`, `debug-shell.*`, `rescue.*`, `emergency\.service`,
	`e2scrub.*`, `xfs_scrub.*`, `system-xfs_scrub.*`, `fstrim.*`, `dpkg-.*`, `apt-.*`, `cryptdisks.*`, `blockdev@.*`,
	`sys-kernel-(debug|tracing).*`, `dev-hugepages.*`, `systemd-networkd-persistent-storage.*`, `systemd-journal-flush.*`,
	`nftables.*`, `rc-local.*`, `user@.*`, `user-.*`, `user\.slice-.*`, `usb-gadget.*`, `proc-sys-fs-binfmt.*`,
	`ssh.*`, `cron.*`, `hwclock.*`, `systemd-udev-load-credentials.*`, `x11-common.*`, `pam_namespace.*`,
}, "|") + `)$`)
