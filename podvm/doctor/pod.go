package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/forwarder"
)

// inPod runs f in the pod's network namespace, in this one if there is none.
func (d *doctor) inPod(f func() error) error {
	ns, err := os.Open(d.Namespace)
	if errors.Is(err, os.ErrNotExist) {
		return f()
	}
	if err != nil {
		return err
	}
	defer ns.Close()
	done := make(chan error)
	go func() {
		// Never unlocked: the thread ends with the goroutine, so nobody else
		// finds itself in the namespace.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- fmt.Errorf("entering the pod's network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}

// netns looks at the pod's network.
func (d *doctor) netns(_ context.Context, r *Report) {
	path := d.Namespace
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT) && !d.peerPod():
		r.skip("there is no %s, and no %s that would need it", d.Namespace, d.ForwarderConfig)
		return
	case err != nil:
		r.fail("systemctl status netns@podns", "%s: %v", d.Namespace, err)
		return
	case st.Type != unix.NSFS_MAGIC && st.Type != unix.PROC_SUPER_MAGIC:
		r.fail("systemctl restart netns@podns", "%s is a file, not a network namespace", d.Namespace)
		return
	}
	var addrs []string
	loopback, routed := false, false
	err = d.inPod(func() error {
		links, err := net.Interfaces()
		for _, link := range links {
			up := link.Flags&net.FlagUp != 0
			if link.Flags&net.FlagLoopback != 0 {
				loopback = up
				continue
			}
			a, e := link.Addrs()
			err = errors.Join(err, e)
			for _, addr := range a {
				if up {
					addrs = append(addrs, addr.String())
				}
			}
		}
		var e error
		routed, e = defaultRoute()
		return errors.Join(err, e)
	})
	if err != nil {
		r.warn("ask as root", "%s: %v", d.Namespace, err)
		return
	}
	if !loopback {
		r.fail("systemctl restart netns@podns; api-server-rest listens on loopback", "the loopback device of the pod is down")
	}
	const hint = "journalctl -u agent-protocol-forwarder: it sets up the pod's network from apf.json"
	f, _, err := forwarder.Load(d.ForwarderConfig)
	switch {
	case errors.Is(err, os.ErrNotExist):
		r.add(r.orOK(), "", "the pod has the addresses %s", list(addrs))
		return
	case err != nil:
		r.warn("see the check of the configuration", "the pod has the addresses %s; which it should have is not known", list(addrs))
		return
	}
	for _, want := range f.PodNetwork.PodIPs {
		if !slices.Contains(addrs, want.String()) {
			r.fail(hint, "the pod lacks its address %s; it has %s", want, list(addrs))
			return
		}
	}
	if !routed {
		r.warn(hint, "the pod has the addresses %s, but no default route", list(addrs))
		return
	}
	r.ok("the pod has the addresses %s and a default route", list(addrs))
}

func list(items []string) string {
	if len(items) == 0 {
		return "none"
	}
	return strings.Join(items, ", ")
}

// defaultRoute reports whether this thread's namespace has one.
func defaultRoute() (bool, error) {
	for path, isDefault := range map[string]func([]string) bool{
		"/proc/thread-self/net/route": func(f []string) bool { return len(f) > 7 && f[1] == "00000000" && f[7] == "00000000" },
		"/proc/thread-self/net/ipv6_route": func(f []string) bool {
			return len(f) > 9 && f[1] == "00" && f[9] != "lo" && f[4] != strings.Repeat("0", 32)
		},
	} {
		file, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return false, err
		}
		lines := bufio.NewScanner(file)
		for lines.Scan() {
			if isDefault(strings.Fields(lines.Text())) {
				file.Close()
				return true, nil
			}
		}
		file.Close()
		if err := lines.Err(); err != nil {
			return false, err
		}
	}
	return false, nil
}
