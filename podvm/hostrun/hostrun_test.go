package hostrun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// daemonEnv makes this binary the daemon: it takes the mounts at its value, and
// mounts and unmounts below.
const daemonEnv = "SEALPOD_TEST_TAKE"

// lenderEnv makes this binary the step before it, with systemd at its value.
const lenderEnv = "SEALPOD_TEST_LEND"

func TestMain(m *testing.M) {
	if socket := os.Getenv(lenderEnv); socket != "" {
		if err := lender(os.Getenv("MACHINE"), os.Getenv("DIR"), socket); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir := os.Getenv(daemonEnv); dir != "" {
		if err := daemon(dir); err != nil {
			println(err.Error())
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func lender(machine, dir, socket string) error {
	// As systemd does for a unit with PrivateMounts, even here.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	return lend(machine, dir, socket)
}

func daemon(dir string) error {
	// As systemd does for a unit with ProtectSystem=strict.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.MountSetattr(unix.AT_FDCWD, dir, unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(dir, "no"), 0o755); !errors.Is(err, syscall.EROFS) {
		return errors.Join(errors.New("the namespace is not read-only"), err)
	}
	if err := take(dir, func(name string) string {
		if name == "LISTEN_PID" {
			return strconv.Itoa(os.Getpid())
		}
		return os.Getenv(name)
	}); err != nil {
		return err
	}
	for _, name := range []string{"made", "gone"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", filepath.Join(dir, name), "tmpfs", 0, ""); err != nil {
			return err
		}
	}
	if err := unix.Unmount(filepath.Join(dir, "gone"), 0); err != nil {
		return err
	}
	return unix.Unmount(filepath.Join(dir, "before"), 0)
}

// What a daemon mounts outlives it and its namespace, and everyone sees it.
func TestMountsOfADaemonInItsOwnNamespaceAreTheMachines(t *testing.T) {
	testenv.Root(t)
	dir := filepath.Join(t.TempDir(), "run")
	mount := func(at string) {
		t.Helper()
		if err := os.MkdirAll(at, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	mount(dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	mount(filepath.Join(dir, "before"))

	socket := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	inNamespace(t, nil, lenderEnv+"="+socket, "DIR="+dir, fmt.Sprintf("MACHINE=/proc/%d/ns/mnt", os.Getpid()))
	var tree *os.File
	for _, want := range []string{"FDSTOREREMOVE=1\nFDNAME=host-run", "FDSTORE=1\nFDPOLL=0\nFDNAME=host-run"} {
		b, oob := make([]byte, 256), make([]byte, 256)
		n, noob, _, _, err := manager.ReadMsgUnix(b, oob)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("%q, %v", b[:n], err)
		}
		if cmsgs, err := unix.ParseSocketControlMessage(oob[:noob]); err != nil {
			t.Fatal(err)
		} else if len(cmsgs) > 0 {
			fds, err := unix.ParseUnixRights(&cmsgs[0])
			if err != nil || len(fds) != 1 {
				t.Fatal(fds, err)
			}
			tree = os.NewFile(uintptr(fds[0]), "tree")
		}
	}
	if tree == nil {
		t.Fatal("no descriptor")
	}
	defer tree.Close()

	inNamespace(t, tree, daemonEnv+"="+dir, "LISTEN_FDS=1", "LISTEN_FDNAMES=host-run")
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	var at []string
	for _, m := range mounts {
		at = append(at, strings.TrimPrefix(m.Mountpoint, dir))
	}
	if got := strings.Join(at, " "); got != " /made" {
		t.Errorf("the machine has mounts at %q, want one at /made", got)
	}
}

// inNamespace runs this binary in a mount namespace of its own.
func inNamespace(t *testing.T, file *os.File, env ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	if file != nil {
		cmd.ExtraFiles = []*os.File{file}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestLentFD(t *testing.T) {
	me := strconv.Itoa(os.Getpid())
	for name, c := range map[string]struct {
		pid, n, names string
		fd            int
		err           error
	}{
		"not by systemd":         {fd: -1},
		"for another process":    {pid: "1", n: "1", names: fdName, fd: -1},
		"none of ours":           {pid: me, n: "1", names: "connection", fd: -1},
		"the only one":           {pid: me, n: "1", names: fdName, fd: 3},
		"the second":             {pid: me, n: "2", names: "a:" + fdName, fd: 4},
		"named but not there":    {pid: me, n: "1", names: "a:" + fdName, fd: -1, err: ErrNotLent},
		"a number that is none":  {pid: me, n: "x", names: fdName, fd: -1, err: ErrNotLent},
		"a number without names": {pid: me, n: "1", fd: -1},
	} {
		t.Run(name, func(t *testing.T) {
			env := map[string]string{"LISTEN_PID": c.pid, "LISTEN_FDS": c.n, "LISTEN_FDNAMES": c.names}
			if fd, err := lentFD(func(k string) string { return env[k] }); fd != c.fd || !errors.Is(err, c.err) {
				t.Errorf("%d, %v", fd, err)
			}
		})
	}
}

func TestLendNeedsSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if err := Lend(); !errors.Is(err, ErrNotLent) {
		t.Error(err)
	}
}

// A daemon that was to get /run and did not would serve, and mount for itself alone.
func TestTakeMissesWhatTheUnitLends(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"nothing":               {Env: "yes"},
		"something else":        {Env: "yes", "LISTEN_PID": strconv.Itoa(os.Getpid()), "LISTEN_FDS": "1", "LISTEN_FDNAMES": "connection"},
		"for a different pid":   {Env: "yes", "LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": fdName},
		"and no unit that does": {},
	} {
		t.Run(name, func(t *testing.T) {
			err := take(t.TempDir(), func(k string) string { return env[k] })
			if errors.Is(err, ErrNotLent) != (env[Env] != "") {
				t.Error(err)
			}
		})
	}
}
