package podnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// fromHost is what a worker with a bridge plugin sends.
const fromHost = `{
	"podip": "10.244.1.7/24", "pod-hw-addr": "0a:58:0a:f4:01:07", "interface": "eth0", "worker-node-ip": "192.168.0.10/24",
	"tunnel-type": "vxlan",
	"routes": [
		{"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"},
		{"dst": "10.244.1.0/24", "gw": "", "dev": "eth0", "protocol": "kernel", "scope": "link"},
		{"Dst": "", "GW": "fd00::1", "Dev": "eth0", "protocol": "static", "scope": "universe"},
		{"dst": "10.96.0.1/12", "GW": "::ffff:10.244.1.2"}
	],
	"neighbors": [{"ip": "10.244.1.1", "hw-addr": "0a:58:0a:f4:01:01", "dev": "eth0", "state": "permanent"}],
	"mtu": 1450, "index": 3, "vxlan-port": 4790, "vxlan-id": 555003, "dedicated": true, "external-net-via-pod-vm": true,
	"something-new": {"a": [1]}
}`

func decode(t testing.TB, text string) Config {
	t.Helper()
	var c Config
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestConfigOfAWorker(t *testing.T) {
	got := decode(t, fromHost)
	mac := func(b byte) []byte { return []byte{0x0a, 0x58, 0x0a, 0xf4, 0x01, b} }
	want := Config{
		PodIPs: []netip.Prefix{netip.MustParsePrefix("10.244.1.7/24")}, PodHWAddr: mac(7), Interface: "eth0",
		WorkerIP: netip.MustParseAddr("192.168.0.10"), TunnelType: "vxlan", MTU: 1450, VXLANPort: 4790, VXLANID: 555003,
		Dedicated: true, ExternalNetViaPodVM: true,
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: netip.MustParseAddr("10.244.1.1"), Dev: "eth0"},
			{Dst: netip.MustParsePrefix("10.244.1.0/24"), Dev: "eth0", Protocol: unix.RTPROT_KERNEL, Scope: unix.RT_SCOPE_LINK},
			{Dst: netip.MustParsePrefix("::/0"), Gateway: netip.MustParseAddr("fd00::1"), Dev: "eth0", Protocol: unix.RTPROT_STATIC},
			{Dst: netip.MustParsePrefix("10.96.0.0/12"), Gateway: netip.MustParseAddr("10.244.1.2")},
		},
		Neighbors: []Neighbor{{IP: netip.MustParseAddr("10.244.1.1"), HWAddr: mac(1), Dev: "eth0", State: unix.NUD_PERMANENT}},
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
}

func TestConfigDefaults(t *testing.T) {
	c := decode(t, `{"PODIP":"10.0.0.2/32","Interface":"eth0","Worker-Node-IP":"::ffff:192.168.0.1/24","tunnel-type":"vxlan","Index":7,
		"routes":null,"neighbors":null,"pod-hw-addr":null,"pod-ips":["fd00::2/64","::ffff:10.0.0.3/128"]}`)
	if c.VXLANPort != 4789 || c.VXLANID != 555007 || c.PodHWAddr != nil || c.Routes != nil || c.Neighbors != nil {
		t.Errorf("%+v", c)
	}
	if got := fmt.Sprint(c.WorkerIP, c.PodIPs); got != "192.168.0.1 [10.0.0.2/32 fd00::2/64 10.0.0.3/32]" {
		t.Error(got)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

// with is a good configuration with one member replaced or added.
func with(t testing.TB, key, value string) string {
	t.Helper()
	m := map[string]json.RawMessage{}
	if err := json.Unmarshal([]byte(fromHost), &m); err != nil {
		t.Fatal(err)
	}
	m[key] = json.RawMessage(value)
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestConfigRefused(t *testing.T) {
	for _, tc := range []struct{ key, value, want string }{
		{"podip", `"10.0.0.1"`, "podip: not a prefix"},
		{"podip", `"fe80::1%eth0/64"`, "podip: not a prefix"},
		{"podip", `"::ffff:10.0.0.1/64"`, "podip: not a prefix"},
		{"podip", `""`, "podip: missing"},
		{"podip", `"127.0.0.1/8"`, "podip: "},
		{"podip", `"224.0.0.1/8"`, "podip: "},
		{"podip", `7`, "podip"},
		{"pod-hw-addr", `"02:00:00:00:00"`, "pod-hw-addr: not a MAC"},
		{"pod-hw-addr", `"02:00:00:00:00:00:00:01"`, "pod-hw-addr: not a MAC"},
		{"pod-hw-addr", `"01:00:5e:00:00:01"`, "pod-hw-addr: "},
		{"pod-hw-addr", `"00:00:00:00:00:00"`, "pod-hw-addr: "},
		{"interface", `""`, "interface: "},
		{"interface", `"lo"`, "interface: "},
		{"interface", `"a/b"`, "interface: "},
		{"interface", `"eth%d"`, "interface: "},
		{"interface", `"sixteen-letters-"`, "interface: "},
		{"worker-node-ip", `"x"`, "worker-node-ip: not a prefix"},
		{"worker-node-ip", `""`, "worker-node-ip: missing"},
		{"worker-node-ip", `"0.0.0.0/0"`, "worker-node-ip: "},
		{"worker-node-ip", `"239.0.0.1/32"`, "worker-node-ip: "},
		{"tunnel-type", `"ipip"`, `unknown tunnel type: "ipip"`},
		{"tunnel-type", `""`, `unknown tunnel type: ""`},
		{"vxlan-port", `65536`, "vxlan-port"},
		{"vxlan-port", `-1`, "vxlan-port"},
		{"vxlan-id", `16777216`, "vxlan-id"},
		{"vxlan-id", `1e30`, "vxlan-id"},
		{"mtu", `67`, "mtu"},
		{"mtu", `"1450"`, "mtu"},
		{"routes", `[{"dst":"10.0.0.0/33"}]`, "routes[0].dst: not a prefix"},
		{"routes", `[{"gw":"fe80::1%eth0"}]`, "routes[0].gw: not an address"},
		{"routes", `[{},{"protocol":"bgp"}]`, `routes[1].protocol: unknown: "bgp"`},
		{"routes", `[{"scope":"global"}]`, `routes[0].scope: unknown: "global"`},
		{"routes", `[{"dst":"10.0.0.0/8","gw":"fd00::1"}]`, "routes[0]: "},
		{"routes", `[{"dev":"eth1"}]`, `routes[0]: dev: the pod has no device "eth1"`},
		{"routes", `{}`, "outes"},
		{"routes", "[" + strings.Repeat("{},", maxRoutes) + "{}]", "routes"},
		{"neighbors", `[{"ip":"x"}]`, "neighbors[0].ip: not an address"},
		{"neighbors", `[{"ip":"10.0.0.1","hw-addr":"x"}]`, "neighbors[0].hw-addr: not a MAC"},
		{"neighbors", `[{"ip":"10.0.0.1","state":"happy"}]`, `neighbors[0].state: unknown: "happy"`},
		{"neighbors", `[{}]`, "neighbors[0]: ip: missing"},
		{"neighbors", `[{"ip":"10.0.0.1","dev":"lo"}]`, "neighbors[0]: dev: "},
		{"pod-ips", `["fd00::1"]`, "podip: not a prefix"},
	} {
		t.Run(tc.key+" "+tc.value[:min(len(tc.value), 40)], func(t *testing.T) {
			var c Config
			err := json.Unmarshal([]byte(with(t, tc.key, tc.value)), &c)
			if err == nil {
				err = c.Validate()
			}
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	t.Run("too large", func(t *testing.T) {
		var c Config
		if err := c.UnmarshalJSON(make([]byte, maxConfigBytes+1)); !errors.Is(err, podvm.ErrTooLarge) {
			t.Error(err)
		}
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(fromHost))
	f.Add([]byte(`{"podip":"::ffff:10.0.0.1/104","routes":[null,{"dst":"::ffff:0.0.0.0/0"}],"neighbors":[{"state":"none"}],"mtu":9e9}`))
	f.Add([]byte(`{"interface":"\u0000","index":-1,"worker-node-ip":"fd00::1/128"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var c Config
		if err := c.UnmarshalJSON(b); err != nil {
			if !errors.Is(err, ErrConfig) {
				t.Fatal(err)
			}
			return
		}
		for _, p := range c.PodIPs {
			if !p.IsValid() || p.Addr().Is4In6() {
				t.Fatal(p)
			}
		}
		for _, r := range c.Routes {
			if !r.Dst.IsValid() || r.Dst.Addr().Is4In6() || r.Gateway.Is4In6() || r.Dst != r.Dst.Masked() {
				t.Fatal(r)
			}
		}
		if c.Validate() == nil && (len(c.PodIPs) == 0 || c.VXLANID < 1 || c.VXLANPort < 1 || checkName(c.Interface) != nil) {
			t.Fatalf("%+v", c)
		}
	})
}
