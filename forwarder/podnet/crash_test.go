package podnet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a forwarder that dies.
const childEnv = "SEALPOD_PODNET_CHILD"

// order is what a child does.
type order struct {
	Config                 string
	Namespace, Root, State string
	IMDS, NoNFT            bool
	Close                  bool // instead of Setup
	KillAt                 int  // the change before which the process is killed, from 1; 0 is never
}

func (o order) options() Options {
	opts := Options{Namespace: o.Namespace, Root: o.Root, State: o.State, noNFT: o.NoNFT, Log: slog.New(slog.DiscardHandler)}
	if o.IMDS {
		opts.IMDS = metadataServices
	}
	return opts
}

// child carries out the order in the environment, and returns an exit status.
func child() int {
	var o order
	var c Config
	if err := errors.Join(json.Unmarshal([]byte(os.Getenv(childEnv)), &o), json.Unmarshal([]byte(o.Config), &c)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	opts, steps := o.options(), 0
	opts.step = func(string) error {
		if steps++; steps == o.KillAt {
			return syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
		return nil
	}
	var err error
	if o.Close {
		err = newNetwork(c, opts).Close(context.Background())
	} else {
		_, err = Setup(context.Background(), c, opts)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// killed runs a child and reports whether it was killed.
func killed(t *testing.T, o order) bool {
	t.Helper()
	// As a forwarder has it: the VM's namespace is that of the process.
	vm := filepath.Base(o.Root)
	o.Root = ""
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("ip", "netns", "exec", vm, os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+string(b))
	out, err := cmd.CombinedOutput()
	if err == nil {
		return false
	}
	if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	return true
}

// crashes are networks with everything that can be left half-way.
var crashes = []struct {
	name        string
	more        map[string]any
	imds, noNFT bool
}{
	{name: "dual stack", more: map[string]any{"pod-ips": []string{"fd10::7/64"}, "routes": []map[string]string{
		{"dst": "::/0", "gw": "fd10::1"}, {"dst": "fd10::/64", "dev": "eth0"}, {"dst": "10.244.1.0/24"}, {"dst": "", "gw": "10.244.1.1"},
	}}},
	{name: "a network interface of its own and metadata services", more: map[string]any{"external-net-via-pod-vm": true}, imds: true},
	{name: "iptables", imds: true, noNFT: true},
}

// A forwarder killed before any of its changes, during Setup or Close, is followed
// by one that makes the same network as if nothing had happened.
func TestKilledAtAnyStep(t *testing.T) {
	for _, tc := range crashes {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.external()
			l.in(l.vm, "sh", "-c", "for t in raw nat filter; do iptables-legacy -t $t -L -n; done")
			before := l.settled()
			o := order{
				Config: base(t, tc.more), Namespace: l.options().Namespace, Root: l.options().Root, State: l.state, IMDS: tc.imds, NoNFT: tc.noNFT,
			}
			setup := func() *Network {
				n, err := Setup(t.Context(), decode(t, o.Config), o.options())
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			n := setup()
			clean := l.settled()
			for _, o.Close = range []bool{true, false} {
				what := map[bool]string{true: "Close", false: "Setup"}[o.Close]
				for o.KillAt = 1; killed(t, o); o.KillAt++ {
					n = setup()
					l.same(clean, fmt.Sprintf("killed at step %d of %s", o.KillAt, what))
					if !o.Close { // what Close leaves of this is seen at the end
						if err := n.Close(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
				}
				t.Logf("%s: %d steps", what, o.KillAt-1)
			}
			l.same(clean, "at the end")
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.same(before, "closed at the end")
		})
	}
}

// A Setup that fails at any of its changes leaves nothing.
func TestFailsAtAnyStep(t *testing.T) {
	for _, tc := range crashes {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t)
			l.external()
			l.in(l.vm, "sh", "-c", "for t in raw nat filter; do iptables-legacy -t $t -L -n; done")
			before := l.settled()
			o := l.options()
			o.noNFT = tc.noNFT
			if tc.imds {
				o.IMDS = metadataServices
			}
			for failAt := 1; ; failAt++ {
				steps := 0
				var failed string
				o.step = func(doing string) error {
					if steps++; steps == failAt {
						failed = doing
						return unix.EIO
					}
					return nil
				}
				n, err := Setup(t.Context(), decode(t, base(t, tc.more)), o)
				if failed == "" {
					if err != nil {
						t.Fatal(err)
					}
					n.opts.step = nil
					if err := n.Close(t.Context()); err != nil {
						t.Fatal(err)
					}
					l.same(before, "after Close")
					t.Logf("%d steps", failAt-1)
					return
				}
				if !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), failed) {
					t.Errorf("step %d, %s: %v", failAt, failed, err)
				}
				l.same(before, fmt.Sprintf("failed at step %d, %s", failAt, failed))
			}
		})
	}
}

func TestParseIMDS(t *testing.T) {
	for text, want := range map[string]int{"": 0, "169.254.169.254": 1, "169.254.169.254, 100.100.100.200,169.254.169.254": 2, "10.0.0.1": -1, "x": -1, ",": -1} {
		got, err := ParseIMDS(text)
		if (want < 0) != errors.Is(err, ErrConfig) || len(got) != max(want, 0) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
		for _, a := range got {
			if a == (netip.Addr{}) {
				t.Error(a)
			}
		}
	}
}
