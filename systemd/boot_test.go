package systemd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// bootEnv makes this binary process 1 of a pod in namespaces: it makes the root
// file system at its value and becomes systemd.
const bootEnv = "SEALPOD_TEST_BOOT"

func TestMain(m *testing.M) {
	if dir := os.Getenv(bootEnv); dir != "" {
		err := boot(dir)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const initProgram = "/lib/systemd/systemd"

// masked are units of the machine that have no business in there.
var masked = []string{"systemd-udevd.service", "systemd-udevd-kernel.socket", "systemd-udevd-control.socket", "systemd-udev-trigger.service",
	"systemd-modules-load.service", "systemd-sysctl.service", "systemd-networkd.service", "systemd-random-seed.service", "systemd-timesyncd.service",
	"systemd-resolved.service", "sys-kernel-config.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-fs-fuse-connections.mount",
	"dev-hugepages.mount", "dev-mqueue.mount", "apparmor.service", "networking.service"}

const userData = `#cloud-config
write_files:
- path: /run/peerpod/aa.toml
  content: ""
- path: /run/peerpod/cdh.toml
  content: |
    socket = "unix:///run/confidential-containers/cdh.sock"
    [kbc]
    name = "offline_fs_kbc"
- path: /run/peerpod/apf.json
  content: |
    {"pod-network": {"podip": "10.244.1.5/24", "pod-hw-addr": "0a:58:0a:f4:01:05", "interface": "eth0",
     "worker-node-ip": "10.0.0.1/24", "tunnel-type": "vxlan", "vxlan-port": 4789, "vxlan-id": 555001, "mtu": 1450, "index": 1, "routes":
     [{"dst": "10.244.1.0/24", "dev": "eth0", "scope": "link"}, {"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"}]}}
`

// boot is process 1 until it is systemd.
func boot(dir string) error {
	root := filepath.Join(dir, "root")
	upper := filepath.Join(dir, "upper")
	type mount struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}
	mounts := []mount{
		{"", "/", "", unix.MS_PRIVATE | unix.MS_REC, ""},
		{"overlay", root, "overlay", 0, "lowerdir=/,upperdir=" + upper + ",workdir=" + filepath.Join(dir, "work")},
		{"proc", root + "/proc", "proc", 0, ""},
		{"sysfs", root + "/sys", "sysfs", 0, ""},
		{"cgroup2", root + "/sys/fs/cgroup", "cgroup2", 0, ""},
		{"tmpfs", root + "/run", "tmpfs", 0, "mode=755"},
		{"tmpfs", root + "/tmp", "tmpfs", 0, "mode=1777"},
		{"tmpfs", root + "/var/tmp", "tmpfs", 0, "mode=1777"},
		{"tmpfs", root + "/dev", "tmpfs", 0, "mode=755"},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9} {
		if err := unix.Mknod(root+"/dev/"+name, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return err
		}
	}
	if err := errors.Join(os.Mkdir(root+"/dev/pts", 0o755), os.Mkdir(root+"/dev/shm", 0o755), os.Symlink("pts/ptmx", root+"/dev/ptmx"),
		os.Symlink("/proc/self/fd", root+"/dev/fd"), unix.Mount("devpts", root+"/dev/pts", "devpts", 0, ""), network()); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir(root+"/run/old", 0o755), unix.PivotRoot(root, root+"/run/old"), os.Chdir("/"), unix.Unmount("/run/old", unix.MNT_DETACH)); err != nil {
		return err
	}
	return unix.Exec(initProgram, []string{initProgram, "--unit=pod.target", "--log-target=journal"},
		[]string{"container=sealpod-test", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
}

// network gives the pod VM a network interface with a default route.
func network() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "en0"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "far"}); err != nil {
		return err
	}
	addr, err := netlink.ParseAddr("10.0.0.2/24")
	if err != nil {
		return err
	}
	for _, name := range []string{"lo", "far", "en0"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if name == "en0" {
			err = errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l), netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: []byte{10, 0, 0, 1}}))
		} else {
			err = netlink.LinkSetUp(l)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pod is a systemd with our units, in namespaces of its own.
type pod struct {
	t   *testing.T
	pid int
}

func (p *pod) run(args ...string) string {
	p.t.Helper()
	cmd := exec.CommandContext(p.t.Context(), "nsenter", append([]string{"--target", fmt.Sprint(p.pid), "--mount", "--uts", "--ipc", "--net", "--pid", "--"}, args...)...)
	out, _ := cmd.CombinedOutput()
	return strings.TrimSpace(string(out))
}

func startPod(t *testing.T) *pod {
	testenv.Root(t)
	testenv.Tool(t, "nsenter")
	testenv.Tool(t, "make")
	if _, err := os.Stat(initProgram); err != nil {
		testenv.Missing(t, "needs systemd: "+err.Error())
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fill(t, filepath.Join(dir, "upper"))
	for _, name := range []string{"root", "work"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// A control group of its own, which is the root of what systemd sees.
	groups := t.TempDir()
	if err := unix.Mount("cgroup2", groups, "cgroup2", 0, ""); err != nil {
		testenv.Missing(t, "needs control groups of version 2: "+err.Error())
	}
	t.Cleanup(func() { _ = unix.Unmount(groups, unix.MNT_DETACH) })
	group := filepath.Join(groups, fmt.Sprintf("sealpod-test-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(group, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd) //nolint:errcheck // a test
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), bootEnv+"="+dir)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP,
		UseCgroupFD: true, CgroupFD: fd, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // and with it all of its processes
		_ = cmd.Wait()
		removeGroups(group)
	})
	return &pod{t, cmd.Process.Pid}
}

// removeGroups removes a control group with those in it, as far as they are empty.
func removeGroups(dir string) {
	inside, _ := os.ReadDir(dir)
	for _, e := range inside {
		if e.IsDir() {
			removeGroups(filepath.Join(dir, e.Name()))
		}
	}
	_ = os.Remove(dir)
}

// fill makes what the pod VM has over the machine's own files.
func fill(t *testing.T, upper string) {
	t.Helper()
	file := func(name, text string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(upper, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(to, name string) {
		t.Helper()
		path := filepath.Join(upper, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Symlink(to, path)); err != nil {
			t.Fatal(err)
		}
	}
	install := exec.CommandContext(t.Context(), "make", "-s", "-C", "..", "install", "DESTDIR="+upper)
	install.Stderr = os.Stderr
	if err := install.Run(); err != nil {
		t.Fatal(err)
	}
	file("etc/fstab", "", 0o644)
	file("etc/machine-id", "", 0o644)
	file("etc/agent-config.toml", "", 0o644)
	file("etc/aa-offline_fs_kbc-keys.json", "{}", 0o600)
	file("etc/default/agent-protocol-forwarder", "TLS_OPTIONS=-disable-tls\n", 0o644)
	file("media/cidata/user-data", userData, 0o644)
	file("usr/local/bin/kata-agent", "#!/bin/sh\nexec sleep infinity\n", 0o755)
	file("etc/systemd/journald.conf.d/test.conf", "[Journal]\nStorage=volatile\n", 0o644)
	preset, err := os.ReadFile("system-preset/20-sealpod.preset")
	if err != nil {
		t.Fatal(err)
	}
	target := "[Unit]\nRequires=basic.target\nAfter=basic.target\n"
	for line := range strings.Lines(string(preset)) {
		if name, ok := strings.CutPrefix(line, "enable "); ok {
			target += "Wants=" + name
		}
	}
	file("etc/systemd/system/pod.target", target, 0o644)
	for _, name := range masked {
		link("/dev/null", "etc/systemd/system/"+name)
	}
}

// eventually waits until ok.
func (p *pod) eventually(what string, limit time.Duration, ok func() bool) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), limit)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			p.t.Fatalf("not in %v: %s\n%s\n%s", limit, what, p.run("systemctl", "--no-pager", "--all", "list-units", "*.service", "*.path"), p.run("journalctl", "--no-pager", "-n", "80"))
		}
	}
}

// mountsAreShared tells whether what is mounted below /run by the process pid of
// the pod is there for process 1, and gone for both when that unmounts it.
func (p *pod) mountsAreShared(pid string) bool {
	point := "/run/seen-by-all"
	seen := func(by string) bool { return strings.Contains(p.run("cat", "/proc/"+by+"/mountinfo"), point) }
	p.run("mkdir", "-p", point)
	p.run("nsenter", "--mount=/proc/"+pid+"/ns/mnt", "--", "mount", "-t", "tmpfs", "tmpfs", point)
	up := seen(pid) && seen("1")
	p.run("umount", point)
	return up && !seen("1") && !seen(pid)
}

// A pod VM's units under a real systemd: all are up, what the data hub mounts is
// the machine's, and who is killed comes back.
func TestUnitsUnderSystemd(t *testing.T) {
	p := startPod(t)
	daemons := []string{"attestation-agent", "confidential-data-hub", "api-server-rest", "agent-protocol-forwarder", "kata-agent"}
	pids := func() (all []string) {
		for _, name := range daemons {
			if pid := p.run("systemctl", "show", "--property=MainPID", "--value", name); p.run("systemctl", "is-active", name) == "active" {
				all = append(all, pid)
			}
		}
		return all
	}
	p.eventually("all daemons are up", 2*time.Minute, func() bool { return len(pids()) == len(daemons) })
	t.Log(p.run("systemctl", "--version"))
	if failed := p.run("systemctl", "--no-legend", "--no-pager", "list-units", "--failed", "*agent*", "*hub*", "*rest*", "netns*", "process*"); failed != "" {
		t.Error(failed)
	}
	for _, socket := range []string{podvm.AASocket, podvm.CDHSocket} {
		if err := rpc.Answers(t.Context(), fmt.Sprintf("/proc/%d/root%s", p.pid, socket)); err != nil {
			t.Error(err)
		}
	}
	// Their metrics are where status looks for them.
	if up := p.run("sealpod", "status"); strings.Count(up, "  up  ") != 4 {
		t.Errorf("status:\n%s", up)
	}
	before := pids()
	for _, i := range []int{1, 3} {
		if !p.mountsAreShared(before[i]) {
			t.Errorf("%s has mounts of its own", daemons[i])
		}
	}
	if p.mountsAreShared(before[0]) {
		t.Error("the attestation agent mounts for all: this shows nothing")
	}
	for _, name := range daemons {
		p.run("systemctl", "kill", "--signal=KILL", name)
	}
	p.eventually("all daemons are back", time.Minute, func() bool {
		now := pids()
		return len(now) == len(daemons) && !slices.ContainsFunc(now, func(pid string) bool { return slices.Contains(before, pid) })
	}) // One that gets no /run does not start at all.
	p.run("sh", "-c", "mkdir -p /run/systemd/system/agent-protocol-forwarder.service.d && printf '[Service]\\nExecStartPre=\\n' >/run/systemd/system/agent-protocol-forwarder.service.d/no.conf && systemctl daemon-reload")
	p.run("systemctl", "stop", "agent-protocol-forwarder.path", "agent-protocol-forwarder")
	p.run("systemctl", "start", "--no-block", "agent-protocol-forwarder")
	p.eventually("the forwarder says what it lacks", time.Minute, func() bool {
		return strings.Contains(p.run("journalctl", "--no-pager", "-u", "agent-protocol-forwarder"), "was not lent")
	})
	if state := p.run("systemctl", "is-active", "agent-protocol-forwarder"); state == "active" {
		t.Error("the forwarder serves without the machine's /run")
	}
}
