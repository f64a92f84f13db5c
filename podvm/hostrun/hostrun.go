// Package hostrun gives a daemon the /run of the machine although its unit has a
// mount namespace of its own, so that what it mounts there everyone sees, and
// nothing else of the file system has to be writable or visible to it.
//
// systemd makes such a namespace from copies that follow the machine's mounts,
// not the other way round, even for commands with "+". So a step before the daemon
// enters the namespace of process 1 and lends its /run: it clones the mounts into
// a detached tree, whose mounts stay peers of the machine's, and leaves its
// descriptor with systemd. The daemon takes the descriptor and puts the tree over
// its own /run. From then on whatever either side mounts or unmounts below /run,
// the other does too. What a daemon mounts elsewhere, it alone sees.
//
// Data path: units of daemons that mount have "ExecStartPre=+sealpod lend-run" and
// set Env; those daemons call Take first of all.
//
// Trust: the descriptor comes from systemd. Who could give a daemon another one
// could as well start another program.
// Source: open_tree(2), move_mount(2), mount_namespaces(7), sd_notify(3) on
// FDSTORE, sd_listen_fds(3).
package hostrun

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	dir     = "/run"
	machine = "/proc/1/ns/mnt"
	fdName  = "host-run"
	firstFD = 3 // SD_LISTEN_FDS_START
	// sendTime is how long systemd may take to read.
	sendTime = 10 * time.Second
)

// Env is set by units that lend /run. With it a daemon that gets nothing does not
// start: it would mount where nobody looks.
const Env = "SEALPOD_LENT_RUN"

// ErrNotLent says that the unit of a daemon lends /run and the daemon did not get
// it.
var ErrNotLent = errors.New("the machine's /run was not lent to this daemon")

// Lend leaves the mounts of /run with systemd for the daemon this process runs
// before, in place of what an earlier one left.
func Lend() error {
	addr := os.Getenv("NOTIFY_SOCKET")
	if addr == "" {
		return fmt.Errorf("%w: NOTIFY_SOCKET is not set, so nobody keeps it", ErrNotLent)
	}
	return lend(machine, dir, addr)
}

func lend(machine, dir, addr string) (err error) {
	tree, err := clone(machine, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unix.Close(tree)) }()
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: addr, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := conn.SetWriteDeadline(time.Now().Add(sendTime)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("FDSTOREREMOVE=1\nFDNAME=" + fdName)); err != nil {
		return err
	}
	// Not WriteMsgUnix, which refuses a socket that is connected.
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var sent error
	if err := raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte("FDSTORE=1\nFDPOLL=0\nFDNAME="+fdName), unix.UnixRights(tree), nil, 0)
		return !errors.Is(sent, unix.EAGAIN)
	}); err != nil {
		return err
	}
	return sent
}

// clone returns a detached copy of the mounts of dir in the mount namespace
// machine. The thread that enters it ends.
func clone(machine, dir string) (tree int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		tree, err = cloneHere(machine, dir)
	}()
	<-done
	return tree, err
}

func cloneHere(machine, dir string) (tree int, err error) {
	ns, err := os.Open(machine)
	if err != nil {
		return -1, err
	}
	defer ns.Close() //nolint:errcheck // read-only
	// A thread that shares its working directory with others may not go.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, err
	}
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("entering the machine's mount namespace: %w", err)
	}
	// As systemd has made it, except where it is not the first of the machine.
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return -1, fmt.Errorf("sharing the mounts of %s: %w", dir, err)
	}
	tree, err = unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("cloning the mounts of %s: %w", dir, err)
	}
	return tree, nil
}

// Take puts the mounts that were lent over /run. Where the unit lends none, and
// does not set Env, it does nothing. It must come before anything that looks at /run.
//
// Errors: ErrNotLent, those of move_mount(2).
func Take() error { return take(dir, os.Getenv) }

func take(dir string, getenv func(string) string) error {
	fd, err := lentFD(getenv)
	if err == nil && fd < 0 && getenv(Env) != "" {
		err = fmt.Errorf("%w, although %s is set: does its unit have lend-run before it, and NotifyAccess=exec?", ErrNotLent, Env)
	}
	if err != nil || fd < 0 {
		return err
	}
	defer unix.Close(fd) //nolint:errcheck // the mounts are in place or not
	// It is not for the programs this daemon starts.
	unix.CloseOnExec(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("putting the machine's %s in place: %w", dir, err)
	}
	return nil
}

// lentFD returns the descriptor, -1 if systemd passes none to this process.
func lentFD(getenv func(string) string) (int, error) {
	if getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return -1, nil
	}
	names := strings.Split(getenv("LISTEN_FDNAMES"), ":")
	n, err := strconv.Atoi(getenv("LISTEN_FDS"))
	at := slices.Index(names, fdName)
	switch {
	case err != nil || at >= n:
		return -1, fmt.Errorf("%w: LISTEN_FDS is %.20q, LISTEN_FDNAMES %.200q", ErrNotLent, getenv("LISTEN_FDS"), getenv("LISTEN_FDNAMES"))
	case at < 0:
		return -1, nil
	}
	return firstFD + at, nil
}
