package podnet

import (
	"regexp"
	"strings"
	"testing"
)

var externalNet = map[string]any{"external-net-via-pod-vm": true, "routes": []map[string]string{
	{"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"}, {"dst": "10.244.1.0/24", "dev": "eth0"},
	{"dst": "10.96.0.0/12", "gw": "10.244.1.1", "dev": "eth0"},
}}

func TestExternalNet(t *testing.T) {
	for _, tc := range []struct {
		name    string
		prepare func(*lab)
		want    []string
		six     bool
	}{
		{
			name: "a second interface with a gateway of its own", prepare: (*lab).external,
			want: []string{"default via 192.168.200.1 dev ens4 \n", "10.96.0.0/12 via 10.244.1.1 dev eth0 \n", "192.168.200.0/24 dev ens4 proto kernel scope link src 192.168.200.2 \n"},
			six:  true,
		},
		{
			name: "a second interface in the subnet of the first",
			prepare: func(l *lab) {
				l.cable("ens4", "ens4", "192.168.100.22/24", "", "192.168.111.1/24", "")
				l.ip(l.vm, "route", "del", "192.168.100.0/24", "dev", "ens4") // the worker is at ens3
				l.ip(l.worker, "addr", "add", "192.168.100.1/24", "dev", "ens4")
				l.ip(l.worker, "route", "del", "192.168.100.0/24", "dev", "ens4")
				l.ip(l.worker, "route", "add", "192.168.100.22", "dev", "ens4")
				l.ip(l.worker, "addr", "add", "203.0.113.1/32", "dev", "lo")
			},
			want: []string{"default via 192.168.100.1 dev ens4 \n"},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			l.tunnelEnd("192.168.100.2")
			tc.prepare(l)
			// Neither is for the pod: a device of containers, and one without a way out.
			l.ip(l.vm, "link", "add", "docker0", "type", "bridge")
			l.ip(l.vm, "addr", "add", "192.168.100.33/24", "dev", "docker0")
			l.ip(l.vm, "link", "add", "ens0", "type", "bridge")
			l.ip(l.vm, "addr", "add", "10.77.0.1/24", "dev", "ens0")
			before := l.settled()
			n := l.setup(base(t, externalNet), nil)
			got := l.ip(l.pod, "route")
			for _, w := range tc.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q, want %q", got, w)
				}
			}
			if strings.Contains(got, "default via 10.244.1.1") {
				t.Error("the pod has two ways out:", got)
			}
			if tc.six != strings.Contains(l.ip(l.pod, "-6", "route"), "default via fd65::1 dev ens4 metric 1024 ") {
				t.Error(l.ip(l.pod, "-6", "route"))
			}
			addr, _, _ := strings.Cut(strings.Fields(l.ip(l.pod, "-4", "-o", "addr", "show", "ens4"))[3], "/")
			l.serve(l.worker, "203.0.113.1:80")
			l.http(l.pod, "203.0.113.1:80", addr)
			l.serve(l.worker, "10.244.1.1:80")
			l.http(l.pod, "10.244.1.1:80", "10.244.1.7")
			made := l.settled()
			l.setup(base(t, externalNet), nil)
			l.same(made, "after a second Setup")
			// A forwarder whose configuration changed gives it back.
			l.setup(base(t, nil), nil)
			if out := l.ip(l.vm, "link"); !strings.Contains(out, "ens4") {
				t.Error("the VM has not got it back:", out)
			}
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.same(before, "after Close")
		})
	}
}

// Two interfaces in one subnet, both configured by DHCP with the same metric, where
// the second one's lease came first: the VM keeps the first, whose address is the
// one the worker node knows.
func TestExternalNetWithALateFirstLease(t *testing.T) {
	l := newLab(t)
	l.tunnelEnd("192.168.100.2")
	l.cable("ens4", "ens4", "192.168.100.22/24", "", "192.168.111.1/24", "")
	for _, dev := range []string{"ens3", "ens4"} {
		l.ip(l.vm, "-4", "route", "flush", "dev", dev)
	}
	for _, dev := range []string{"ens4", "ens3"} {
		l.ip(l.vm, "route", "append", "192.168.100.0/24", "dev", dev, "proto", "kernel", "metric", "1024")
		l.ip(l.vm, "route", "append", "default", "via", "192.168.100.1", "dev", dev, "proto", "dhcp", "metric", "1024")
	}
	l.ip(l.worker, "addr", "add", "192.168.100.1/24", "dev", "ens4")
	l.ip(l.worker, "route", "del", "192.168.100.0/24", "dev", "ens4")
	l.ip(l.worker, "route", "add", "192.168.100.22", "dev", "ens4")
	l.ip(l.worker, "addr", "add", "203.0.113.1/32", "dev", "lo")
	before := l.settled()
	n := l.setup(base(t, externalNet), nil)
	if got := l.ip(l.vm, "-o", "addr"); !strings.Contains(got, "192.168.100.2/24") {
		t.Error("the VM gave its own interface away:", got)
	}
	l.serve(l.worker, "203.0.113.1:80")
	l.http(l.pod, "203.0.113.1:80", "192.168.100.22")
	l.serve(l.worker, "10.244.1.1:80")
	l.http(l.pod, "10.244.1.1:80", "10.244.1.7")
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.same(before, "after Close")
}

// An address of a lease does not end in the pod, where nobody renews it.
func TestExternalNetByDHCP(t *testing.T) {
	l := newLab(t)
	l.external()
	l.ip(l.vm, "addr", "change", "192.168.200.2/24", "dev", "ens4", "valid_lft", "3600", "preferred_lft", "1800")
	n := l.setup(base(t, externalNet), nil)
	if got := l.ip(l.pod, "-4", "addr", "show", "ens4"); !strings.Contains(got, "valid_lft forever preferred_lft forever") {
		t.Error(got)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := l.ip(l.vm, "-4", "addr", "show", "ens4"); !regexp.MustCompile(`valid_lft 3[56]\d\dsec preferred_lft 1[78]\d\dsec`).MatchString(got) {
		t.Error(got)
	}
}

// The VM got its interface back by other means, or lost it for good.
func TestExternalNetGone(t *testing.T) {
	for name, spoil := range map[string]func(*lab){
		"moved back by hand": func(l *lab) { l.ip(l.pod, "link", "set", "ens4", "netns", l.vm) },
		"unplugged":          func(l *lab) { l.ip(l.pod, "link", "del", "ens4") },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.external()
			n := l.setup(base(t, externalNet), nil)
			spoil(l)
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := l.snapshot(); strings.Contains(got, "there is a state file") {
				t.Error(got)
			}
		})
	}
}

func TestDedicated(t *testing.T) {
	l := newLab(t)
	l.cable("ens5", "ens5", "192.168.150.2/24", "", "192.168.150.1/24", "")
	l.tunnelEnd("192.168.150.2")
	before := l.settled()
	more := map[string]any{"dedicated": true, "worker-node-ip": "192.168.150.1/24"}
	n := l.setup(base(t, more), func(o *Options) { o.HostInterface = "ens5" })
	made := l.settled()
	l.setup(base(t, more), func(o *Options) { o.HostInterface = "ens5" })
	l.same(made, "after a second Setup")
	if got := l.ip(l.pod, "-d", "link", "show", "eth0"); !strings.Contains(got, "remote 192.168.150.1 local 192.168.150.2 dev ") {
		t.Error(got)
	}
	l.serve(l.pod, "10.244.1.7:80")
	l.http(l.worker, "10.244.1.7:80", "10.244.1.1")
	// It is the dedicated interface that carries the tunnel.
	l.ip(l.worker, "link", "set", "ens3", "down")
	l.http(l.worker, "10.244.1.7:80", "10.244.1.1")
	l.ip(l.worker, "link", "set", "ens3", "up")
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.same(before, "after Close")
}

// A worker that only the primary interface leads to is reached by that, although
// it talks to the dedicated one.
func TestDedicatedWithoutARoute(t *testing.T) {
	l := newLab(t)
	l.cable("ens5", "ens5", "192.168.150.2/24", "", "192.168.150.1/24", "")
	l.tunnelEnd("192.168.150.2")
	l.setup(base(t, map[string]any{"dedicated": true}), func(o *Options) { o.HostInterface = "ens5" })
	l.serve(l.pod, "10.244.1.7:80")
	l.http(l.worker, "10.244.1.7:80", "10.244.1.1")
}
