package image

import (
	"maps"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
)

// Profile is who the image is for.
type Profile string

const (
	// Production has no way to log in.
	Production Profile = "production"
	// Debug gives the serial console to whoever watches it, as root.
	Debug Profile = "debug"
)

// settings are the files of the guest that no package has.
func settings(profile Profile) debian.Tree {
	t := debian.Tree{}
	for name, content := range map[string]string{
		// Empty: every boot makes its own, in memory.
		"etc/machine-id": "",
		"etc/hostname":   "podvm\n",
		"etc/hosts":      "127.0.0.1 localhost\n::1 localhost\n",
		"etc/fstab":      "",
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n" +
			"networks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
		"etc/systemd/network/80-dhcp.network":   "[Match]\nName=en* eth*\n\n" + dhcp,
		"etc/systemd/network/70-hyperv.network": "[Match]\nDriver=hv_netvsc\n\n" + dhcp,
		// Hyper-V drives these behind the card above, with the same address.
		"etc/systemd/network/60-hyperv-vf.network": "[Match]\nVirtualization=microsoft\nDriver=mlx4_core mlx5_core mana\n\n" +
			"[Link]\nUnmanaged=yes\n",
		// The console can be read by the host.
		"etc/systemd/journald.conf.d/podvm.conf": "[Journal]\nStorage=volatile\nForwardToConsole=no\nForwardToWall=no\n",
		"etc/systemd/system.conf.d/podvm.conf":   "[Manager]\nDumpCore=no\nCrashAction=poweroff\nCtrlAltDelBurstAction=none\n",
		"etc/systemd/resolved.conf.d/podvm.conf": "[Resolve]\nLLMNR=no\nMulticastDNS=no\n",
		"etc/sysctl.d/podvm.conf":                "kernel.core_pattern=|/bin/false\nkernel.kptr_restrict=2\nkernel.dmesg_restrict=1\nkernel.sysrq=0\nfs.suid_dumpable=0\n",
		"etc/modules-load.d/podvm.conf":          strings.Join(earlyModules, "\n") + "\n",
		// Its private /var/tmp is made of the one that comes then.
		"etc/systemd/system/systemd-resolved.service.d/podvm.conf": "[Unit]\nAfter=systemd-tmpfiles-setup.service\n",
		// Scratch storage takes what the disk has left.
		"usr/lib/repart.d/50-scratch.conf": "[Partition]\nType=linux-generic\nLabel=" + scratchLabel + "\n",
		unitDir + "emergency.service": "[Unit]\nDescription=Power Off, as the Boot Has Failed\nDefaultDependencies=no\n" +
			"Conflicts=shutdown.target\nBefore=shutdown.target\n\n[Service]\nType=oneshot\n" +
			"ExecStart=/usr/bin/systemctl --force --no-block poweroff\nStandardOutput=journal+console\nStandardError=journal+console\n",
	} {
		t[name] = debian.File(0o644, []byte(content))
	}
	for name, target := range map[string]string{
		"etc/mtab": "../proc/self/mounts",
		// Not the stub: the network namespace of the pod does not reach it.
		"etc/resolv.conf":                                            "../run/systemd/resolve/resolv.conf",
		"etc/localtime":                                              "../usr/share/zoneinfo/UTC",
		"usr/sbin/iptables":                                          "xtables-nft-multi",
		"usr/sbin/iptables-save":                                     "xtables-nft-multi",
		"usr/sbin/iptables-restore":                                  "xtables-nft-multi",
		unitDir + "ctrl-alt-del.target":                              "/dev/null",
		unitDir + "default.target":                                   "multi-user.target",
		unitDir + "rescue.target":                                    "/dev/null",
		unitDir + "dbus-org.freedesktop.network1.service":            "systemd-networkd.service",
		unitDir + "dbus-org.freedesktop.resolve1.service":            "systemd-resolved.service",
		unitDir + "multi-user.target.wants/systemd-networkd.service": "../systemd-networkd.service",
		unitDir + "sockets.target.wants/systemd-networkd.socket":     "../systemd-networkd.socket",
		unitDir + "network-online.target.wants/systemd-networkd-wait-online.service": "../systemd-networkd-wait-online.service",
		unitDir + "sysinit.target.wants/systemd-resolved.service":                    "../systemd-resolved.service",
		unitDir + "sysinit.target.wants/systemd-repart.service":                      "../systemd-repart.service",
		unitDir + "local-fs.target.wants/tmp.mount":                                  "../tmp.mount",
	} {
		t[name] = debian.Link(target)
	}
	maps.Copy(t, agentFiles())
	if profile == Debug {
		t[unitDir+"debug-console.service"] = debian.File(0o644, []byte(debugConsole))
		t[unitDir+"sysinit.target.wants/debug-console.service"] = debian.Link("../debug-console.service")
	}
	return t
}

// debugConsole is a shell on the serial console, early enough to see why a boot
// hangs.
const debugConsole = `[Unit]
Description=Root Shell for Whoever Sees the Console
DefaultDependencies=no
Conflicts=shutdown.target
Before=shutdown.target
After=systemd-tmpfiles-setup-dev.service

[Service]
Type=idle
Environment=HOME=/root TERM=vt220 PS1=podvm#
WorkingDirectory=/root
ExecStart=/usr/bin/bash --noprofile --norc -i
StandardInput=tty
TTYPath=/dev/ttyS0
TTYReset=yes
TTYVHangup=yes
Restart=always
RestartSec=1
`

const dhcp = "[Network]\nDHCP=yes\nLLDP=no\n\n[DHCPv4]\nUseDomains=yes\n\n[DHCPv6]\nUseDomains=yes\n"
