package podnet

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// metadata puts the metadata services at the worker's end of the VM's network.
func (l *lab) metadata() {
	l.t.Helper()
	for _, a := range metadataServices {
		l.ip(l.worker, "addr", "add", a.String()+"/32", "dev", "lo")
		l.serve(l.worker, a.String()+":80")
	}
	l.ip(l.worker, "addr", "add", "203.0.113.1/32", "dev", "lo")
	l.serve(l.worker, "203.0.113.1:80")
}

func TestIMDS(t *testing.T) {
	for _, tc := range []struct {
		name  string
		noNFT bool
	}{{"nf_tables", false}, {"iptables", true}} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t)
			l.tunnelEnd("192.168.100.2")
			l.metadata()
			l.in(l.vm, "sh", "-c", "for t in raw nat filter; do iptables-legacy -t $t -L -n; done")
			before := l.settled()
			n := l.setup(base(t, nil), func(o *Options) { o.noNFT, o.IMDS = tc.noNFT, metadataServices })
			for _, a := range metadataServices {
				l.http(l.pod, a.String()+":80", "192.168.100.2")
			}
			made := l.settled()
			l.setup(base(t, nil), func(o *Options) { o.noNFT, o.IMDS = tc.noNFT, metadataServices })
			l.same(made, "after a second Setup")

			// A container with CAP_NET_ADMIN finds no way to anything else: not
			// to the VM's network, nor to the VM itself.
			l.serve(l.vm, "192.168.100.2:15150")
			for _, a := range []string{"203.0.113.1", "192.168.100.2", "192.168.100.1"} {
				l.ip(l.pod, "route", "replace", a, "dev", imdsPodDev, "src", "10.244.1.7")
				l.ip(l.pod, "neigh", "replace", a, "dev", imdsPodDev, "lladdr", imdsRootMAC.String())
			}
			for _, a := range []string{"203.0.113.1:80", "192.168.100.2:15150"} {
				if by, err := l.post(l.pod, a, 10, dialTimeout); err == nil {
					t.Errorf("the pod reached %s as %s", a, by)
				}
			}
			// Nor does the network of the VM find a way to the pod.
			l.serve(l.pod, "10.244.1.7:8080")
			l.ip(l.worker, "route", "del", "10.244.1.0/24", "dev", "cni0")
			l.ip(l.worker, "route", "add", "10.244.1.7", "via", "192.168.100.2")
			if by, err := l.post(l.worker, "10.244.1.7:8080", 10, dialTimeout); err == nil {
				t.Errorf("the pod was reached by %s", by)
			}
			if err := n.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.same(before, "after Close")
			if by, err := l.post(l.pod, "169.254.169.254:80", 10, dialTimeout); err == nil {
				t.Errorf("the pod asked as %s after Close", by)
			}
		})
	}
}

// A route of the pod to the service, which led over the worker node, is hidden as
// long as there is a way, and comes back.
func TestIMDSThePodHasARouteTo(t *testing.T) {
	l := newLab(t)
	l.tunnelEnd("192.168.100.2")
	l.metadata()
	config := base(t, routes(
		map[string]string{"dst": "10.244.1.0/24", "dev": "eth0"}, map[string]string{"dst": "0.0.0.0/0", "gw": "10.244.1.1"},
		map[string]string{"dst": "169.254.169.254/32", "gw": "10.244.1.1"}))
	before := l.settled()
	n := l.setup(config, nil)
	without := l.settled()
	o := l.options()
	for range 2 {
		if err := SetupIMDS(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		l.http(l.pod, "169.254.169.254:80", "192.168.100.2")
	}
	if err := TeardownIMDS(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	l.same(without, "after the teardown")
	l.setup(config, func(o *Options) { o.IMDS = metadataServices })
	l.http(l.pod, "169.254.169.254:80", "192.168.100.2")
	with := l.settled()
	l.setup(config, func(o *Options) { o.IMDS = metadataServices })
	l.same(with, "after a second Setup")
	if err := TeardownIMDS(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.same(before, "after Close")
}

// Who never asked for it has no metadata service.
func TestNoIMDSByDefault(t *testing.T) {
	l := newLab(t)
	l.tunnelEnd("192.168.100.2")
	l.ip(l.vm, "addr", "add", "169.254.169.254/32", "dev", "lo")
	l.serve(l.vm, "169.254.169.254:80")
	l.setup(base(t, nil), nil)
	if by, err := l.post(l.pod, "169.254.169.254:80", 10, dialTimeout); err == nil {
		t.Errorf("the pod asked as %s", by)
	}
}

func TestSetupIMDSByItself(t *testing.T) {
	l := newLab(t)
	l.tunnelEnd("192.168.100.2")
	l.metadata()
	o := l.options()
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := SetupIMDS(short, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	done := make(chan error, 1)
	go func() { done <- SetupIMDS(t.Context(), o) }()
	// It waits for the pod's network, and is the forwarder's business no more.
	n := l.setup(base(t, nil), nil)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	l.http(l.pod, "169.254.169.254:80", "192.168.100.2")
	if got := l.ip(l.pod, "route"); strings.Contains(got, "100.100.100.200") {
		t.Error("a service nobody asked for:", got)
	}
	with := l.settled()
	if err := SetupIMDS(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	l.same(with, "after a second SetupIMDS")
	for range 2 {
		if err := TeardownIMDS(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestIMDSRefuses(t *testing.T) {
	l := newLab(t)
	before := l.settled()
	o := l.options()
	o.IMDS = metadataServices
	v6 := decode(t, base(t, map[string]any{"podip": "fd10::7/64", "routes": nil, "neighbors": nil}))
	if _, err := Setup(t.Context(), v6, o); !errors.Is(err, ErrConfig) {
		t.Error(err)
	}
	l.same(before, "after a pod without IPv4")
	l.ip(l.vm, "link", "add", imdsRootDev, "type", "bridge")
	before = l.settled()
	if _, err := Setup(t.Context(), decode(t, base(t, nil)), o); !errors.Is(err, ErrForeign) {
		t.Error(err)
	}
	l.same(before, "with a foreign device")
	l.ip(l.vm, "link", "del", imdsRootDev)
	l.ip(l.vm, "route", "flush", "default")
	before = l.settled()
	if _, err := Setup(t.Context(), decode(t, base(t, nil)), o); !errors.Is(err, unix.ENETUNREACH) {
		t.Error(err)
	}
	l.same(before, "without a route to the service")
}
