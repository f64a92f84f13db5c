package image

import (
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// packagesOf is what little a root file system takes.
func packagesOf() debian.Tree {
	unit := debian.File(0o644, []byte("[Unit]\n"))
	return debian.Tree{
		"usr/lib/modules/6.12/kernel/fs/x.txt":           debian.File(0o644, []byte("no module")),
		"usr/lib/modules/6.12/modules.order":             debian.File(0o644, []byte("\n")),
		"usr/lib/modules/6.12/modules.builtin":           debian.File(0o644, []byte("\n")),
		"usr/share/ca-certificates/mozilla/B.crt":        debian.File(0o644, []byte("B\n")),
		"usr/share/ca-certificates/mozilla/A.crt":        debian.File(0o644, []byte("A\n")),
		"usr/lib/sysusers.d/basic.conf":                  debian.File(0o644, []byte("# x\ng tty 5 -\nu root 0 - /root /bin/bash\nu daemon 1 - /usr/sbin\n")),
		"usr/lib/sysusers.d/network.conf":                debian.File(0o644, []byte("u! systemd-network - \"Network Management\"\ng kvm - -\nu man 6:12 - /var/cache/man\n")),
		"usr/bin/tool":                                   debian.File(0o755|unix.S_ISUID, []byte("\x7fELF")),
		"usr/bin/login":                                  debian.File(0o755, []byte("\x7fELF")),
		"usr/bin/bash":                                   debian.File(0o755, []byte("\x7fELF")),
		"usr/bin/script":                                 debian.File(0o755, []byte("#!/bin/sh\n")),
		"usr/bin/env-script":                             debian.File(0o755, []byte("#!/usr/bin/env python3\n")),
		"usr/bin/own-script":                             debian.File(0o755, []byte("#! /usr/bin/tool -x\n")),
		"usr/share/doc/x/copyright":                      debian.File(0o644, nil),
		"etc/hostname":                                   debian.File(0o755, []byte("builder\n")),
		"etc/resolv.conf":                                debian.File(0o755, []byte("nameserver 192.0.2.1\n")),
		"etc/apt/sources.list":                           debian.File(0o644, nil),
		"var/lib/x":                                      debian.File(0o644, nil),
		"lib":                                            debian.Link("usr/lib"),
		unitDir + "getty@.service":                       unit,
		unitDir + "getty.target.wants/getty@.service":    debian.Link("../getty@.service"),
		unitDir + "systemd-pcrphase.service":             unit,
		unitDir + "dbus.service":                         unit,
		unitDir + "multi-user.target.wants/dbus.service": debian.Link("../dbus.service"),
		unitDir + "multi-user.target.wants/gone.service": debian.Link("../gone.service"),
	}
}

func TestRootFileSystem(t *testing.T) {
	testenv.Tool(t, "depmod")
	over := debian.Tree{
		"usr/local/bin/sealpod":                     debian.File(0o755, []byte("\x7fELF")),
		"usr/lib/systemd/system-preset/20-x.preset": debian.File(0o644, []byte("# x\nenable x.path\ndisable y.path\nenable static.service\n")),
		unitDir + "x.path":                          debian.File(0o644, []byte("[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=multi-user.target  paths.target\n")),
		unitDir + "y.path":                          debian.File(0o644, []byte("[Install]\nWantedBy=multi-user.target\n")),
		unitDir + "static.service":                  debian.File(0o644, []byte("[Service]\n")),
	}
	got, err := root(t.Context(), packagesOf(), Production, over)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"usr/bin/login", "usr/bin/bash", "usr/bin/script", "usr/bin/env-script", "usr/share/doc/x/copyright", "etc/apt/sources.list", "var/lib/x",
		unitDir + "getty@.service", unitDir + "getty.target.wants/getty@.service", unitDir + "systemd-pcrphase.service",
		unitDir + "multi-user.target.wants/gone.service", unitDir + "debug-console.service",
		unitDir + "multi-user.target.wants/y.path", unitDir + "no.target.wants/x.path",
	} {
		if _, ok := got[name]; ok {
			t.Errorf("%s is in the image", name)
		}
	}
	for name, want := range map[string]string{
		"etc/machine-id": "", "etc/hostname": "podvm\n", "etc/ssl/certs/ca-certificates.crt": "A\nB\n",
		"etc/passwd": "daemon:x:1:1::/usr/sbin:/usr/sbin/nologin\nman:x:6:12::/var/cache/man:/usr/sbin/nologin\n" +
			"root:x:0:0::/root:/usr/sbin/nologin\nsystemd-network:x:999:999:Network Management:/:/usr/sbin/nologin\n",
		"etc/group":             "daemon:x:1:\nkvm:x:998:\nroot:x:0:\nsystemd-network:x:999:\ntty:x:5:\n",
		"etc/resolv.conf":       "../run/systemd/resolve/resolv.conf",
		"lib":                   "usr/lib",
		"usr/bin/own-script":    "#! /usr/bin/tool -x\n",
		"usr/local/bin/sealpod": "\x7fELF",
		unitDir + "multi-user.target.wants/dbus.service": "../dbus.service",
		unitDir + "multi-user.target.wants/x.path":       "../x.path", unitDir + "paths.target.wants/x.path": "../x.path",
		"etc/kata-opa/default-policy.rego": "/run/peerpod/policy.rego",
	} {
		if n, ok := got[name]; !ok || string(n.Data) != want {
			t.Errorf("%s is %q", name, n.Data)
		}
	}
	if got["usr/bin/tool"].Mode != unix.S_IFREG|0o755 {
		t.Errorf("usr/bin/tool has mode %o", got["usr/bin/tool"].Mode)
	}
	for line := range strings.Lines(string(got["etc/shadow"].Data)) {
		if !strings.Contains(line, ":!*:") {
			t.Errorf("somebody can log in: %s", line)
		}
	}
	if _, ok := got["usr/lib/modules/6.12/modules.dep.bin"]; !ok {
		t.Error("modprobe finds no modules")
	}
}

func TestDebugProfileHasAShellOnTheConsole(t *testing.T) {
	testenv.Tool(t, "depmod")
	got, err := root(t.Context(), packagesOf(), Debug)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"usr/bin/bash", unitDir + "debug-console.service", unitDir + "sysinit.target.wants/debug-console.service"} {
		if _, ok := got[name]; !ok {
			t.Errorf("%s is not in the image", name)
		}
	}
}

func TestRootFileSystemNeeds(t *testing.T) {
	for name, without := range map[string]string{
		"certificates": "usr/share/ca-certificates/mozilla/", "root": "usr/lib/sysusers.d/basic.conf", "a kernel": "usr/lib/modules/",
	} {
		all := packagesOf()
		for file := range all {
			if strings.HasPrefix(file, without) {
				delete(all, file)
			}
		}
		if _, err := root(t.Context(), all, Production); err == nil {
			t.Errorf("an image without %s", name)
		}
	}
}

func TestEnabledUnitsMustBeThere(t *testing.T) {
	preset := debian.Tree{"usr/lib/systemd/system-preset/20-x.preset": debian.File(0o644, []byte("enable x.path\n"))}
	if err := enable(preset, preset); err == nil || !strings.Contains(err.Error(), "x.path") {
		t.Error(err)
	}
}

func TestAgentPolicyAllowsEachRequestOnce(t *testing.T) {
	seen := map[string]bool{}
	for line := range strings.Lines(string(agentFiles()[agentPolicy].Data)) {
		if name, ok := strings.CutPrefix(line, "default "); ok {
			if !strings.HasSuffix(name, " := true\n") || seen[name] {
				t.Errorf("%q", line)
			}
			seen[name] = true
		}
	}
	if len(seen) != 37 {
		t.Errorf("%d requests", len(seen))
	}
}

func TestAccountsRefuseWhatTheyDoNotKnow(t *testing.T) {
	for _, line := range []string{"m user group", "r - 500-900", "u x y", "u x 5:y", "x y"} {
		tree := debian.Tree{"usr/lib/sysusers.d/x.conf": debian.File(0o644, []byte("u root 0\n"+line+"\n"))}
		if err := accounts(tree); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: %v", line, err)
		}
	}
}

func TestNoTwoAccountsShareANumber(t *testing.T) {
	conf := "u root 0\n"
	for i := range 20 {
		conf += fmt.Sprintf("u user%d - \"a b\"\ng group%d %d\n", i, i, 980+i)
	}
	tree := debian.Tree{"usr/lib/sysusers.d/x.conf": debian.File(0o644, []byte(conf))}
	if err := accounts(tree); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(string(tree["etc/group"].Data)) {
		id := strings.Split(line, ":")[2]
		if seen[id] {
			t.Errorf("%s twice", id)
		}
		seen[id] = true
	}
	if len(seen) != 41 {
		t.Errorf("%d groups", len(seen))
	}
}
