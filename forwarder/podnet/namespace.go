package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrNamespace says that a path is not that of a network namespace, or of the
// wrong one.
var ErrNamespace = errors.New("not a network namespace for a pod")

// socketTimeout bounds the kernel's answer to one request; it comes at once.
const socketTimeout = 10 * time.Second

// namespace is a network namespace with a netlink socket in it. Requests go
// through the socket; no thread has to stay there for them.
type namespace struct {
	*netlink.Handle
	file *os.File
	own  bool // this process is in it
}

// openNamespace opens the namespace at path, "" for that of this process.
func openNamespace(path string) (*namespace, error) {
	n := &namespace{own: path == ""}
	if n.own {
		path = "/proc/self/ns/net"
	}
	// Not to wait for the other end of a pipe, should path be one.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNamespace, err)
	}
	n.file = file
	if err := n.connect(); err != nil {
		file.Close()
		return nil, fmt.Errorf("opening the network namespace %s: %w", path, err)
	}
	return n, nil
}

func (n *namespace) connect() error {
	fd := int(n.file.Fd())
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	if int64(fs.Type) != unix.NSFS_MAGIC {
		return ErrNamespace
	}
	if kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return errors.Join(ErrNamespace, err)
	}
	return n.run(func() (err error) {
		if n.Handle, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
			return err
		}
		return n.SetSocketTimeout(socketTimeout)
	})
}

func (n *namespace) close() {
	n.Close()
	n.file.Close()
}

// is reports whether n and other are the same namespace.
func (n *namespace) is(other *namespace) bool {
	a, err1 := n.file.Stat()
	b, err2 := other.file.Stat()
	return err1 == nil && err2 == nil && os.SameFile(a, b)
}

// run calls f on a thread that is in the namespace. Should the thread not find
// the way back, it ends.
func (n *namespace) run(f func() error) error {
	if n.own {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		done <- func() error {
			runtime.LockOSThread()
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				runtime.UnlockOSThread()
				return err
			}
			defer home.Close()
			if err := unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET); err != nil {
				runtime.UnlockOSThread()
				return err
			}
			err = f()
			if back := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); back != nil {
				return errors.Join(err, back) // the goroutine ends, still locked
			}
			runtime.UnlockOSThread()
			return err
		}()
	}()
	return <-done
}

// wait calls find until it reports true or an error, again whenever links,
// addresses or routes of the namespace change.
func (n *namespace) wait(ctx context.Context, find func() (bool, error)) error {
	if ok, err := find(); ok || err != nil {
		return err
	}
	var events *nl.NetlinkSocket
	err := n.run(func() (err error) {
		events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
			unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("listening for changes of the network: %w", err)
	}
	stop := context.AfterFunc(ctx, events.Close) // which ends Receive
	defer func() {
		if stop() {
			events.Close()
		}
	}()
	for {
		// Once more after the subscription, lest a change in between be lost.
		if ok, err := find(); ok || err != nil {
			return err
		}
		_, _, err := events.Receive()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && !errors.Is(err, unix.ENOBUFS): // too many changes to be told of each
			return fmt.Errorf("listening for changes of the network: %w", err)
		}
	}
}

// list repeats a dump that changes of the network interrupted, up to ten times.
func list[T any](dump func() ([]T, error)) (all []T, err error) {
	for range 10 {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// link returns the device called name, or nil.
func (n *namespace) link(name string) (netlink.Link, error) {
	l, err := n.LinkByName(name)
	if missing := (netlink.LinkNotFoundError{}); errors.As(err, &missing) {
		return nil, nil
	}
	return l, err
}
