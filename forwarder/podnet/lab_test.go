package podnet

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	goleak.VerifyTestMain(m)
}

// lab is a VM and a worker node, each a network namespace, on one Ethernet: the
// VM's namespace has ens3 at 192.168.100.2/24 and fd64::2/64 with the worker, .1,
// as its gateway. The pod's namespace in the VM is empty but for loopback.
type lab struct {
	t               testing.TB
	vm, pod, worker string
	cni             string // the pod's namespace on the worker, from tunnelEnd
	state           string
}

var labs atomic.Int32

func newLab(t testing.TB) *lab {
	t.Helper()
	testenv.Root(t)
	testenv.Tool(t, "ip")
	testenv.Tool(t, "nft")
	testenv.Tool(t, "iptables-legacy-save")
	l := &lab{t: t, state: filepath.Join(t.TempDir(), "podnet.json")}
	base := fmt.Sprintf("pn%d-%d", os.Getpid(), labs.Add(1))
	for _, ns := range []struct {
		name *string
		is   string
	}{{&l.vm, "vm"}, {&l.pod, "pod"}, {&l.worker, "worker"}, {&l.cni, "cni"}} {
		*ns.name = base + "-" + ns.is
		l.run("ip", "netns", "add", *ns.name)
		t.Cleanup(func() { exec.Command("ip", "netns", "del", *ns.name).Run() })
		l.ip(*ns.name, "link", "set", "lo", "up")
	}
	l.cable("ens3", "ens3", "192.168.100.2/24", "fd64::2/64", "192.168.100.1/24", "fd64::1/64")
	l.ip(l.vm, "route", "add", "default", "via", "192.168.100.1", "metric", "100", "proto", "dhcp")
	l.ip(l.vm, "-6", "route", "add", "default", "via", "fd64::1", "metric", "100")
	return l
}

// cable connects a new device of the VM with one of the worker.
func (l *lab) cable(vmDev, workerDev, vm4, vm6, worker4, worker6 string) {
	l.t.Helper()
	l.ip(l.worker, "link", "add", workerDev, "type", "veth", "peer", "name", vmDev, "netns", l.vm)
	for _, end := range []struct{ ns, dev, v4, v6 string }{{l.vm, vmDev, vm4, vm6}, {l.worker, workerDev, worker4, worker6}} {
		l.ip(end.ns, "addr", "add", end.v4, "dev", end.dev)
		if end.v6 != "" {
			l.ip(end.ns, "addr", "add", end.v6, "dev", end.dev, "nodad")
		}
		l.ip(end.ns, "link", "set", end.dev, "up")
	}
}

// external adds the VM's second network interface, ens4, with a gateway of its
// own, behind which is the address 203.0.113.1.
func (l *lab) external() {
	l.t.Helper()
	l.cable("ens4", "ens4", "192.168.200.2/24", "fd65::2/64", "192.168.200.1/24", "fd65::1/64")
	l.ip(l.vm, "route", "add", "default", "via", "192.168.200.1", "dev", "ens4", "metric", "200", "proto", "dhcp")
	l.ip(l.vm, "-6", "route", "add", "default", "via", "fd65::1", "dev", "ens4", "metric", "200")
	l.ip(l.vm, "route", "add", "198.51.100.0/24", "via", "192.168.200.1", "dev", "ens4", "table", "77")
	l.ip(l.worker, "addr", "add", "203.0.113.1/32", "dev", "lo")
}

// tunnelEnd builds the worker's end of the tunnel as cloud-api-adaptor does: a
// VXLAN device that talks by the worker's network, in the namespace of the pod
// there, whose packets are exchanged with those of the interface the plugin made.
func (l *lab) tunnelEnd(vmAddr string) {
	l.t.Helper()
	testenv.Tool(l.t, "tc")
	l.ip(l.worker, "link", "add", "ppvxlan1", "type", "vxlan", "id", "555001", "remote", vmAddr, "dstport", "4789", "nolearning")
	l.ip(l.worker, "link", "set", "ppvxlan1", "netns", l.cni, "name", "vxlan1", "up")
	l.ip(l.worker, "link", "add", "cni0", "type", "veth", "peer", "name", "eth0", "netns", l.cni)
	l.ip(l.worker, "link", "set", "cni0", "mtu", "1450", "up")
	l.ip(l.cni, "link", "set", "eth0", "mtu", "1450", "address", podMAC, "up")
	for _, p := range [][2]string{{"eth0", "vxlan1"}, {"vxlan1", "eth0"}} {
		l.run("tc", "-n", l.cni, "qdisc", "add", "dev", p[0], "ingress")
		l.run("tc", "-n", l.cni, "filter", "add", "dev", p[0], "parent", "ffff:", "protocol", "all", "u32", "match", "u8", "0", "0",
			"action", "mirred", "egress", "redirect", "dev", p[1])
	}
	l.ip(l.worker, "addr", "add", "10.244.1.1/24", "dev", "cni0")
	l.ip(l.worker, "addr", "add", "fd10::1/64", "dev", "cni0", "nodad")
}

const podMAC = "0a:58:0a:f4:01:07"

// base is the configuration a bridge plugin's pod has; more is merged into it.
func base(t testing.TB, more map[string]any) string {
	t.Helper()
	m := map[string]any{
		"podip": "10.244.1.7/24", "pod-hw-addr": podMAC, "interface": "eth0", "worker-node-ip": "192.168.100.1/24", "tunnel-type": "vxlan",
		"routes": []map[string]string{
			{"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"},
			{"dst": "10.244.1.0/24", "gw": "", "dev": "eth0", "protocol": "kernel", "scope": "link"},
		},
		"neighbors": []map[string]string{{"ip": "10.244.1.99", "hw-addr": "0a:58:0a:f4:01:63", "dev": "eth0", "state": "permanent"}},
		"mtu":       1450, "index": 1,
	}
	for k, v := range more {
		m[k] = v
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (l *lab) options() Options {
	return Options{
		Namespace: "/run/netns/" + l.pod, Root: "/run/netns/" + l.vm, State: l.state,
		Log: slog.New(slog.DiscardHandler),
	}
}

// setup runs Setup, and Close at the end of the test.
func (l *lab) setup(config string, change func(*Options)) *Network {
	l.t.Helper()
	o := l.options()
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	n, err := Setup(ctx, decode(l.t, config), o)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := n.Close(context.Background()); err != nil {
			l.t.Error(err)
		}
	})
	return n
}

func (l *lab) run(name string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs ip in a namespace.
func (l *lab) ip(ns string, args ...string) string {
	l.t.Helper()
	return l.run("ip", append([]string{"-n", ns}, args...)...)
}

// in runs a program in a namespace.
func (l *lab) in(ns string, args ...string) string {
	l.t.Helper()
	return l.run("ip", append([]string{"netns", "exec", ns}, args...)...)
}

// volatile is what the kernel numbers, draws or measures, and what a link-local
// address brings along when nobody objected for a second.
var volatile = regexp.MustCompile(`(?m)^\d+: |@if\d+| tentative| dadfailed|\[\d+:\d+\]|^#.*\n|^\s+(RX|TX).*\n|link-netns \S+|link-netnsid \d+|^local fe80::.*\n?|^(eth0|imds|veth-imds)/.*\n`)

// show prints all there is to see of a namespace's network, with few programs: it
// is run hundreds of times.
const show = `
ip -o -d link; printf 'addr\nroute show table all\nneigh show nud permanent\nrule\n' | ip -o -batch -; ip -6 route show table all
cd /proc/sys/net/ipv4/conf; grep -H . */forwarding */proxy_arp; echo ==
nft list ruleset; iptables-legacy-save; ip6tables-legacy-save`

// snapshot is the network of the VM and of the pod. Lines are sorted but for
// those of rules, since devices are listed in the order of their making.
func (l *lab) snapshot() string {
	l.t.Helper()
	var all strings.Builder
	for _, ns := range []string{l.vm, l.pod} {
		things, rules, _ := strings.Cut(volatile.ReplaceAllString(l.in(ns, "sh", "-c", show), ""), "==\n")
		lines := strings.Split(things, "\n")
		slices.Sort(lines)
		fmt.Fprintf(&all, "== %s %s\n==%s\n", ns, strings.Join(lines, "\n"), rules)
	}
	if _, err := os.Stat(l.state); err == nil {
		all.WriteString("there is a state file")
	}
	return all.String()
}

// same waits until the network is as it was in a snapshot: link-local addresses
// come by themselves a little later.
func (l *lab) same(want, what string) {
	l.t.Helper()
	var got string
	for range 100 {
		if got = l.snapshot(); got == want {
			return
		}
		time.Sleep(150 * time.Millisecond) // looking costs more than waiting
	}
	l.t.Fatalf("%s: %s", what, cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")))
}

// settled is a snapshot that stays. The kernel takes up to a second to see that
// the other end of a device is up, and gives it an address then.
func (l *lab) settled() string {
	l.t.Helper()
	last := l.snapshot()
	for range 100 {
		time.Sleep(100 * time.Millisecond)
		next := l.snapshot()
		if next == last && !strings.Contains(next, "NO-CARRIER") {
			return next
		}
		last = next
	}
	l.t.Fatal("the network does not settle")
	return ""
}
