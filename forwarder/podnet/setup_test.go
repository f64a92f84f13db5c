package podnet

import (
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/tool"
)

func routes(r ...map[string]string) map[string]any { return map[string]any{"routes": r} }

func TestSetup(t *testing.T) {
	for _, tc := range []struct {
		name    string
		more    map[string]any
		prepare func(*lab)
		want    map[string]string // what a command of ip shows in the pod
		absent  string            // what none of them does
	}{
		{
			name: "a bridge plugin",
			want: map[string]string{
				"-4 route": "default via 10.244.1.1 dev eth0 \n10.244.1.0/24 dev eth0 proto kernel scope link \n",
				"addr":     "inet 10.244.1.7/24 brd 10.244.1.255 scope global noprefixroute eth0",
				"neigh":    "10.244.1.99 dev eth0 lladdr 0a:58:0a:f4:01:63 PERMANENT",
				"-d link":  "vxlan id 555001 remote 192.168.100.1 srcport 0 0 dstport 4789 nolearning ttl auto ageing 300 udpcsum",
				"link":     "mtu 1450 qdisc noqueue state UNKNOWN mode DEFAULT group 1397771853 qlen 1000\n    link/ether " + podMAC,
			},
			absent: " dev vxlan0",
		},
		{
			name: "a single address and a gateway on the link",
			more: map[string]any{"podip": "10.244.1.7/32", "routes": []map[string]string{
				{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "dev": "eth0", "protocol": "static"}, {"dst": "169.254.1.1/32", "dev": "eth0"},
			}},
			want: map[string]string{"-4 route": "default via 169.254.1.1 dev eth0 proto static \n169.254.1.1 dev eth0 scope link \n"},
		},
		{
			name: "no route to the pod's own subnet but by the gateway",
			more: routes(map[string]string{"dst": "", "gw": "10.244.1.1"}, map[string]string{"dst": "10.244.1.0/24", "gw": "10.244.1.1", "dev": "eth0", "protocol": "dhcp"},
				map[string]string{"dst": "10.244.1.1/32", "gw": "", "dev": "eth0"}, map[string]string{"dst": "10.244.1.1/32", "dev": "eth0", "scope": "link"}),
			want: map[string]string{"-4 route": "default via 10.244.1.1 dev eth0 \n10.244.1.0/24 via 10.244.1.1 dev eth0 proto dhcp \n10.244.1.1 dev eth0 scope link \n"},
		},
		{
			name: "dual stack",
			more: map[string]any{
				"pod-ips": []string{"fd10::7/64"},
				"routes": []map[string]string{
					{"dst": "::/0", "gw": "fd10::1"}, {"dst": "fd10::/64", "dev": "eth0", "protocol": "kernel"},
					{"dst": "10.244.1.0/24", "dev": "eth0"}, {"dst": "", "gw": "10.244.1.1"},
				},
				"neighbors": []map[string]string{{"ip": "fd10::99", "hw-addr": "0a:58:0a:f4:01:63"}, {"ip": "10.244.1.98", "state": "none"}},
			},
			want: map[string]string{
				"-6 route": "fd10::/64 dev eth0 proto kernel metric 1024 pref medium\nfe80::/64 dev eth0 proto kernel metric 256 pref medium\ndefault via fd10::1 dev eth0 metric 1024 pref medium\n",
				"-4 route": "default via 10.244.1.1 dev eth0 \n10.244.1.0/24 dev eth0 scope link \n",
				"addr":     "inet6 fd10::7/64 scope global nodad noprefixroute",
				"-6 neigh": "fd10::99 dev eth0 lladdr 0a:58:0a:f4:01:63 PERMANENT",
			},
			absent: "10.244.1.98",
		},
		{
			name: "neighbors in every state",
			more: map[string]any{"neighbors": []map[string]string{
				{"ip": "10.244.1.20", "hw-addr": "0a:58:0a:f4:01:20", "state": "reachable"}, {"ip": "10.244.1.21", "hw-addr": "0a:58:0a:f4:01:21", "state": "stale"},
				{"ip": "10.244.1.22", "hw-addr": "0a:58:0a:f4:01:22", "state": "delay"}, {"ip": "10.244.1.23", "hw-addr": "0a:58:0a:f4:01:23", "state": "probe"},
				{"ip": "10.244.1.24", "state": "failed"}, {"ip": "10.244.1.25", "state": "incomplete"}, {"ip": "10.244.1.26", "state": "none"},
				{"ip": "10.244.1.27", "hw-addr": "0a:58:0a:f4:01:27", "state": "noarp"}, {"ip": "10.244.1.28", "hw-addr": "0a:58:0a:f4:01:28"},
			}},
			want: map[string]string{"neigh": "10.244.1.28 dev eth0 lladdr 0a:58:0a:f4:01:28 PERMANENT", "neigh show nud stale": "10.244.1.21 dev eth0 lladdr 0a:58:0a:f4:01:21 STALE"},
		},
		{
			name: "a worker with IPv6 only",
			more: map[string]any{"worker-node-ip": "fd64::1/64"},
			want: map[string]string{"-d link": "remote fd64::1 ", "link": "mtu 1430 "},
		},
		{
			name:    "an underlay with small packets",
			prepare: func(l *lab) { l.ip(l.vm, "link", "set", "ens3", "mtu", "1400") },
			want:    map[string]string{"link": "mtu 1350 "},
		},
		{
			name:    "a route with smaller packets than its network interface",
			prepare: func(l *lab) { l.ip(l.vm, "route", "add", "192.168.100.1", "dev", "ens3", "mtu", "1300") },
			want:    map[string]string{"link": "mtu 1250 "},
		},
		{
			name:    "an underlay with jumbo packets, which the worker does not expect",
			prepare: func(l *lab) { l.ip(l.vm, "link", "set", "ens3", "mtu", "9000") },
			more:    map[string]any{"mtu": 8950},
			want:    map[string]string{"link": "mtu 1450 "},
		},
		{
			name: "a pod with small packets and an address the kernel chooses",
			more: map[string]any{"mtu": 1200, "pod-hw-addr": ""},
			want: map[string]string{"link": "mtu 1200 "},
		},
		{
			name: "a network interface with several addresses",
			prepare: func(l *lab) {
				l.ip(l.vm, "addr", "add", "192.168.100.9/24", "dev", "ens3")
				l.ip(l.vm, "addr", "add", "172.31.0.9/16", "dev", "ens3")
			},
			want: map[string]string{"link": "mtu 1450 "},
		},
		{
			name: "a VM without a default route",
			prepare: func(l *lab) {
				l.ip(l.vm, "route", "del", "default")
				l.ip(l.vm, "-6", "route", "del", "default")
			},
			want: map[string]string{"link": "mtu 1450 "},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			if tc.prepare != nil {
				tc.prepare(l)
			}
			before := l.settled()
			n := l.setup(base(t, tc.more), nil)
			made := l.settled()
			for cmd, want := range tc.want {
				if got := l.ip(l.pod, strings.Fields(cmd)...); !strings.Contains(got, want) {
					t.Errorf("ip %s: %q, want %q", cmd, got, want)
				}
			}
			if tc.absent != "" && strings.Contains(made, tc.absent) {
				t.Errorf("%q in %s", tc.absent, made)
			}
			index, _, _ := strings.Cut(l.ip(l.pod, "-o", "link", "show", "eth0"), ":")
			l.setup(base(t, tc.more), nil)
			l.same(made, "after a second Setup")
			if again, _, _ := strings.Cut(l.ip(l.pod, "-o", "link", "show", "eth0"), ":"); again != index {
				t.Errorf("the device is another one: %s, was %s", again, index)
			}
			for range 2 {
				if err := n.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.same(before, "after Close")
			}
		})
	}
}

// What was changed meanwhile, by a configuration or by hand, is put right.
func TestSetupConverges(t *testing.T) {
	l := newLab(t)
	l.setup(base(t, nil), nil)
	want := l.settled()
	for _, tc := range []struct {
		name  string
		spoil func()
	}{
		{"another identifier", func() { l.setup(base(t, map[string]any{"vxlan-id": 5}), nil) }},
		{"another port", func() { l.setup(base(t, map[string]any{"vxlan-port": 4790}), nil) }},
		{"another worker", func() { l.setup(base(t, map[string]any{"worker-node-ip": "192.168.100.77/24"}), nil) }},
		{"another worker, of IPv6", func() { l.setup(base(t, map[string]any{"worker-node-ip": "fd64::1/64"}), nil) }},
		{"another name", func() { l.setup(base(t, map[string]any{"interface": "net1", "routes": nil, "neighbors": nil}), nil) }},
		{"other addresses, routes and neighbors", func() {
			l.setup(base(t, map[string]any{
				"podip": "10.1.0.7/16", "pod-hw-addr": "0a:58:0a:f4:01:08", "mtu": 1300,
				"routes":    []map[string]string{{"dst": "10.244.0.0/16"}, {"dst": "", "gw": "10.244.7.1"}},
				"neighbors": []map[string]string{{"ip": "10.244.1.99", "hw-addr": "0a:58:0a:f4:01:64"}, {"ip": "10.244.1.98", "hw-addr": "0a:58:0a:f4:01:62"}},
			}), nil)
		}},
		{"by hand", func() {
			l.ip(l.pod, "addr", "add", "10.9.9.9/8", "dev", "eth0")
			l.ip(l.pod, "addr", "del", "10.244.1.7/24", "dev", "eth0")
			l.ip(l.pod, "route", "add", "10.9.9.8", "dev", "eth0")
			l.ip(l.pod, "link", "set", "eth0", "down", "mtu", "1000")
			l.in(l.vm, "nft", "flush", "table", "ip", "sealpod-podnet")
		}},
		{"by the pod, with a way out of its own", func() {
			l.ip(l.pod, "link", "add", "tun0", "type", "bridge")
			l.ip(l.pod, "addr", "add", "10.8.0.2/24", "dev", "tun0")
			l.ip(l.pod, "link", "set", "tun0", "up")
			l.ip(l.pod, "route", "replace", "default", "via", "10.8.0.1", "dev", "tun0")
			l.setup(base(t, nil), nil)
			l.ip(l.pod, "link", "del", "tun0")
		}},
		{"an unfinished device of upstream's", func() {
			l.ip(l.pod, "link", "del", "eth0")
			l.ip(l.vm, "link", "add", "vxlan0", "type", "vxlan", "id", "555001", "remote", "192.168.100.1", "dstport", "4789")
		}},
		{"a device of upstream's that was moved", func() {
			l.ip(l.pod, "link", "del", "eth0")
			l.ip(l.vm, "link", "add", "vxlan0", "type", "vxlan", "id", "555001", "remote", "192.168.100.1", "dstport", "4789")
			l.ip(l.vm, "link", "set", "vxlan0", "netns", l.pod)
		}},
		{"a finished device of upstream's", func() {
			l.ip(l.pod, "link", "del", "eth0")
			l.ip(l.vm, "link", "add", "vxlan0", "type", "vxlan", "id", "555001", "remote", "192.168.100.1", "dstport", "4789")
			l.ip(l.vm, "link", "set", "vxlan0", "netns", l.pod, "name", "eth0")
			l.ip(l.pod, "addr", "add", "10.244.1.7/24", "dev", "eth0")
			l.ip(l.pod, "link", "set", "eth0", "up")
		}},
	} {
		tc.spoil()
		l.setup(base(t, nil), nil)
		l.same(want, tc.name)
	}
}

func TestSetupRefuses(t *testing.T) {
	for _, tc := range []struct {
		name    string
		more    map[string]any
		change  func(*lab, *Options)
		prepare func(*lab)
		want    error
		text    string
	}{
		{name: "an unknown tunnel", more: map[string]any{"tunnel-type": "gre"}, want: ErrConfig, text: `unknown tunnel type: "gre"`},
		{name: "a route by an unknown device", more: routes(map[string]string{"dst": "10.0.0.0/8", "dev": "eth7"}), want: ErrConfig, text: "eth7"},
		{name: "a gateway nobody reaches", more: routes(map[string]string{"dst": "", "gw": "10.99.0.1"}), want: unix.ENETUNREACH, text: "adding the route to 0.0.0.0/0 by 10.99.0.1"},
		{name: "two routes to one place", more: routes(map[string]string{"dst": "10.244.1.0/24"}, map[string]string{"dst": "", "gw": "10.244.1.1"}, map[string]string{"dst": "", "gw": "10.244.1.2"}), want: ErrConfig, text: "routes[2]: another route leads to 0.0.0.0/0"},
		{name: "a missing namespace", change: func(_ *lab, o *Options) { o.Namespace = "/run/netns/none" }, want: fs.ErrNotExist},
		{name: "a file as namespace", change: func(l *lab, o *Options) { o.Namespace = file(l.t) }, want: ErrNamespace},
		{name: "a pipe as namespace", change: func(l *lab, o *Options) { o.Namespace = pipe(l.t) }, want: ErrNamespace},
		{name: "another kind of namespace", change: func(_ *lab, o *Options) { o.Namespace = "/proc/self/ns/uts" }, want: ErrNamespace},
		{name: "the namespace of the VM", change: func(_ *lab, o *Options) { o.Namespace = o.Root }, want: ErrNamespace, text: "the one of the VM"},
		{name: "the VM as worker", more: map[string]any{"worker-node-ip": "192.168.100.2/24"}, text: "an address of this VM"},
		{name: "packets too small for IPv6", more: map[string]any{"pod-ips": []string{"fd10::7/64"}}, prepare: func(l *lab) { l.ip(l.vm, "link", "set", "ens3", "mtu", "1329") }, text: "1329 bytes by ens3 leave 1279"},
		{
			name: "a foreign device of the same name", prepare: func(l *lab) { l.ip(l.pod, "link", "add", "eth0", "type", "bridge") },
			want: ErrForeign, text: "eth0 of type bridge",
		},
		{
			name: "a foreign tunnel of the same name", prepare: func(l *lab) {
				l.ip(l.pod, "link", "add", "eth0", "type", "vxlan", "id", "9", "remote", "192.168.100.1", "dstport", "4789")
			},
			want: ErrForeign, text: "eth0 of type vxlan",
		},
		{
			name: "a foreign tunnel of the same identifier", prepare: func(l *lab) {
				l.ip(l.vm, "link", "add", "theirs", "type", "vxlan", "id", "555001", "remote", "192.168.100.1", "dstport", "4789")
			},
			want: ErrForeign, text: "another VXLAN device has the identifier 555001 and the port 4789",
		},
		{name: "the primary interface as the dedicated one", more: map[string]any{"dedicated": true}, change: func(_ *lab, o *Options) { o.HostInterface = "ens3" }, text: "ens3 is not a dedicated interface"},
		{name: "no dedicated interface", more: map[string]any{"dedicated": true}, text: "ens3 is not a dedicated interface"},
		{name: "a dedicated interface that never comes", more: map[string]any{"dedicated": true}, change: func(_ *lab, o *Options) { o.HostInterface = "ens9" }, want: context.DeadlineExceeded, text: "waiting for an address on ens9"},
		{name: "no second interface for the pod", more: map[string]any{"external-net-via-pod-vm": true}, want: context.DeadlineExceeded, text: "lending the pod a network interface"},
		{name: "no route to the worker", more: map[string]any{"worker-node-ip": "10.200.0.1/24"}, prepare: func(l *lab) { l.ip(l.vm, "route", "flush", "default") }, want: context.DeadlineExceeded, text: "finding a route to the worker node 10.200.0.1"},
		{name: "a state file of garbage", change: func(_ *lab, o *Options) { o.State = file(t) }, text: "reading what the pod was lent"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			if tc.prepare != nil {
				tc.prepare(l)
			}
			before := l.settled()
			o := l.options()
			if tc.change != nil {
				tc.change(l, &o)
			}
			wait := 20 * time.Second
			if errors.Is(tc.want, context.DeadlineExceeded) {
				wait = 300 * time.Millisecond // for what never comes
			}
			ctx, cancel := context.WithTimeout(t.Context(), wait)
			defer cancel()
			_, err := Setup(ctx, decode(t, base(t, tc.more)), o)
			if err == nil || tc.want != nil && !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.text) {
				t.Errorf("%v, want %v %q", err, tc.want, tc.text)
			}
			l.same(before, "after a failure")
		})
	}
}

func file(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("no"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func pipe(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// The VM's network comes up while Setup waits.
func TestSetupWaits(t *testing.T) {
	l := newLab(t)
	l.ip(l.vm, "link", "set", "ens3", "down")
	l.ip(l.vm, "addr", "flush", "dev", "ens3")
	done := make(chan error, 1)
	go func() {
		n, err := Setup(t.Context(), decode(t, base(t, map[string]any{"dedicated": true})), dedicatedTo("ens4", l.options()))
		if err == nil {
			err = n.Close(t.Context())
		}
		done <- err
	}()
	for _, step := range []func(){
		func() { l.ip(l.vm, "link", "set", "ens3", "up") },
		func() { l.ip(l.vm, "addr", "add", "192.168.100.2/24", "dev", "ens3") },
		func() { l.cable("ens4", "ens4", "192.168.101.2/24", "", "192.168.101.1/24", "") },
	} {
		select {
		case err := <-done:
			t.Fatalf("Setup did not wait: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
		step()
	}
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("Setup did not see the network come up")
	}
}

func dedicatedTo(host string, o Options) Options {
	o.HostInterface = host
	return o
}

func TestLowestMetricIsPrimary(t *testing.T) {
	l := newLab(t)
	l.external()
	for _, tc := range []struct{ metric, want string }{{"200", "ens3"}, {"50", "ens4"}} {
		l.ip(l.vm, "route", "flush", "default", "dev", "ens4")
		l.ip(l.vm, "route", "add", "default", "via", "192.168.200.1", "dev", "ens4", "metric", tc.metric)
		n := newNetwork(Config{WorkerIP: netip.MustParseAddr("192.168.100.1")}, l.options())
		if err := n.open(false); err != nil {
			t.Fatal(err)
		}
		u, err := n.underlay(t.Context())
		n.shut()
		if err != nil {
			t.Fatal(err)
		}
		if got := u.primary.Attrs().Name; got != tc.want || u.nic.Attrs().Name != "ens3" {
			t.Errorf("metric %s: primary %s, to the worker by %s", tc.metric, got, u.nic.Attrs().Name)
		}
	}
}

// Without nf_tables and iptables there are no rules, and the tunnel works without;
// a way to the metadata service does not.
func TestSetupWithoutRules(t *testing.T) {
	l := newLab(t)
	none := func(o *Options) {
		o.noNFT, o.Host.LookupEnv = true, func(string) (string, bool) { return "", false }
	}
	before := l.settled()
	n := l.setup(base(t, nil), none)
	if got := l.ip(l.pod, "route"); !strings.Contains(got, "default via 10.244.1.1") {
		t.Error(got)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.same(before, "after Close")
	o := l.options()
	none(&o)
	o.IMDS = metadataServices
	if _, err := Setup(t.Context(), decode(t, base(t, nil)), o); !errors.Is(err, tool.ErrMissing) {
		t.Error(err)
	}
	l.same(before, "after a failure")
}

func TestCloseWithoutThePodsNamespace(t *testing.T) {
	l := newLab(t)
	n := l.setup(base(t, nil), func(o *Options) { o.IMDS = metadataServices })
	l.ip(l.pod, "link", "del", "eth0")
	l.run("ip", "netns", "del", l.pod)
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.in(l.vm, "sh", "-c", "nft list ruleset; ip -o link; cat /proc/sys/net/ipv4/conf/ens3/forwarding"); strings.Contains(got, "sealpod") ||
		strings.Contains(got, imdsRootDev) || !strings.HasSuffix(got, "\n0\n") {
		t.Error(got)
	}
}

// Threads that were in other namespaces are back in their own.
func TestNoThreadStaysAway(t *testing.T) {
	l := newLab(t)
	before, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		n := l.setup(base(t, nil), func(o *Options) { o.IMDS = metadataServices })
		if err := n.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	home, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(threads) == 0 {
		t.Fatal(threads, err)
	}
	for _, thread := range threads {
		if ns, err := os.Readlink(thread); err == nil && ns != home {
			t.Errorf("%s is %s", thread, ns)
		}
	}
	if after, err := filepath.Glob("/proc/self/fd/*"); err != nil || len(after) > len(before)+2 {
		t.Errorf("%d open files, were %d: %v", len(after), len(before), err)
	}
}

// BenchmarkSetup is a pod's network made and taken down; taken down alone is
// most of it, since the kernel waits for packets under way.
func BenchmarkSetup(b *testing.B) {
	for _, bc := range []struct {
		name  string
		imds  bool
		noNFT bool
	}{{"plain", false, false}, {"imds", true, false}, {"iptables", false, true}} {
		b.Run(bc.name, func(b *testing.B) {
			l := newLab(b)
			o := l.options()
			o.noNFT = bc.noNFT
			if bc.imds {
				o.IMDS = metadataServices
			}
			c := decode(b, base(b, nil))
			var up time.Duration
			for b.Loop() {
				start := time.Now()
				n, err := Setup(b.Context(), c, o)
				if err != nil {
					b.Fatal(err)
				}
				up += time.Since(start)
				if err := n.Close(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(up.Microseconds())/1000/float64(b.N), "ms-up/op")
		})
	}
}
