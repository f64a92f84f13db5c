// Package netns makes network namespaces that have a name, as the unit of the
// pod's needs them: a file below /run/netns on which the namespace is mounted,
// where ip-netns(8) and NetworkNamespacePath= of systemd.exec(5) find it.
//
// Data path: netns@podns.service, then the forwarder, the REST server and
// kata-agent's containers, which all enter the namespace by its file.
//
// Trust: names come from units.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// Dir is where the files are. Source: iproute2 NETNS_RUN_DIR.
const Dir = "/run/netns"

// Errors.
var (
	ErrName = errors.New("not a name for a network namespace")
	// ErrOther says that something other than a network namespace has the name.
	ErrOther = errors.New("not a network namespace")
)

// Add makes the network namespace called name below dir, with its loopback
// device up. One that exists keeps what is in it.
//
// Errors: ErrName, ErrOther, those of files, mounts and devices.
func Add(dir, name string) error {
	path, err := file(dir, name)
	if err != nil {
		return err
	}
	if is, err := isNamespace(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	} else if is {
		return inside(path, loopbackUp)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", dir, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o444)
	if err != nil {
		return fmt.Errorf("making a file to mount on: %w", err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("making a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		// Last, so that what has the name is complete.
		if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting the namespace on %s: %w", path, err)
		}
		return nil
	})
}

// Delete takes the name away, and with it the namespace as soon as nobody uses it
// any more. One that does not exist is no error.
//
// Errors: ErrName, ErrOther, those of files and mounts.
func Delete(dir, name string) error {
	path, err := file(dir, name)
	if err != nil {
		return err
	}
	is, err := isNamespace(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if is {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
	return os.Remove(path)
}

func file(dir, name string) (string, error) {
	if name == "" || name == "." || name == ".." || len(name) > unix.NAME_MAX || strings.ContainsAny(name, "/\x00") {
		return "", fmt.Errorf("%w: %q", ErrName, podvm.Printable(name, 64))
	}
	return filepath.Join(dir, name), nil
}

// isNamespace tells whether a network namespace is mounted on path. An ordinary
// empty file is what a run leaves that was killed.
func isNamespace(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false, err
	}
	defer f.Close() //nolint:errcheck // read-only
	var at unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &at); err != nil {
		return false, err
	}
	if int64(at.Type) == unix.NSFS_MAGIC {
		if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err == nil && kind == unix.CLONE_NEWNET {
			return true, nil
		}
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
		return false, errors.Join(fmt.Errorf("%w: %s", ErrOther, path), err)
	}
	return false, nil
}

// inside calls f in the namespace at path.
func inside(path string, f func() error) error {
	return onThread(func() error {
		ns, err := os.Open(path)
		if err != nil {
			return err
		}
		defer ns.Close() //nolint:errcheck // read-only
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering %s: %w", path, err)
		}
		return f()
	})
}

// onThread calls f on a thread that ends afterwards, for it is in another
// namespace then.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("starting the loopback device: %w", err)
	}
	return nil
}
