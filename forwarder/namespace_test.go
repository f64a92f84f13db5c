package forwarder

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/testenv"
)

var build struct {
	once sync.Once
	path string
	err  error
	out  []byte
}

// sealpod builds the guest binary once, with the race detector when the test
// itself has it.
func sealpod(t testing.TB) string {
	t.Helper()
	build.once.Do(func() {
		dir, err := os.MkdirTemp("", "sealpod-bin-")
		if err != nil {
			build.err = err
			return
		}
		build.path = filepath.Join(dir, "sealpod")
		args := []string{"build", "-trimpath", "-ldflags=-s -w", "-o", build.path}
		env := append(os.Environ(), "CGO_ENABLED=0")
		if raceEnabled {
			args, env = append(args, "-race"), os.Environ()
		}
		cmd := exec.Command("go", append(args, "github.com/sealpod/sealpod/cmd/sealpod")...)
		cmd.Env = env
		build.out, build.err = cmd.CombinedOutput()
	})
	if build.err != nil {
		t.Fatalf("building sealpod: %v\n%s", build.err, build.out)
	}
	return build.path
}

// namespace is a network namespace that lives as long as a process that sleeps
// in it, so that none is left behind whatever happens to the test.
type namespace struct{ path string }

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	holder := exec.Command(testenv.Tool(t, "sleep"), "infinity")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	n := &namespace{fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)}
	n.run(t, "ip", "link", "set", "lo", "up")
	return n
}

// do runs f, and processes that f starts, in the namespace.
func (n *namespace) do(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer home.Close()
	there, err := os.Open(n.path)
	if err != nil {
		return err
	}
	defer there.Close()
	if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
		return err
	}
	defer func() {
		if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // the thread would go on elsewhere
		}
	}()
	return f()
}

// run runs a program in the namespace and returns what it printed.
func (n *namespace) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	var out []byte
	if err := n.do(func() (err error) {
		out, err = exec.Command(testenv.Tool(t, name), args...).CombinedOutput()
		return err
	}); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// dial connects from within the namespace.
func (n *namespace) dial(addr string) (conn net.Conn, err error) {
	err = n.do(func() (err error) {
		conn, err = net.DialTimeout("tcp4", addr, 5*time.Second)
		return err
	})
	return conn, err
}

// state is everything a forwarder might change in the namespace.
func (n *namespace) state(t testing.TB) string {
	t.Helper()
	var b strings.Builder
	for _, c := range []string{
		"ip -d -o link", "ip -o addr", "ip -4 route show table all", "ip -6 route show table all", "ip rule", "ip neigh show nud permanent",
		"iptables-save", "nft list ruleset", "sysctl net.ipv4.ip_forward",
	} {
		words := strings.Fields(c)
		fmt.Fprintf(&b, "# %s\n%s", c, n.run(t, words[0], words[1:]...))
	}
	return volatile.ReplaceAllString(b.String(), "")
}

// volatile is what changes by itself: times, counters, and the empty chains of
// iptables that listing them makes.
var volatile = regexp.MustCompile(`(?m)(valid|preferred)_lft \S+|^#.*(Generated|Completed).*$|\[\d+:\d+\]|counter packets \d+ bytes \d+|promiscuity \d+|allmulti \d+|gc_\S+ \S+`)
