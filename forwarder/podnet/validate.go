package podnet

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// minMTU is the least MTU of a device with an IPv4 address, and minMTU6 of one
// with an IPv6 address. Source: RFC 791 section 3.2, RFC 8200 section 5.
const (
	minMTU  = 68
	minMTU6 = 1280
)

// Validate checks what the fields of c mean together. Errors wrap ErrConfig.
func (c *Config) Validate() error {
	if err := c.validate(); err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return nil
}

func (c *Config) validate() error {
	if c.TunnelType != "vxlan" {
		return fmt.Errorf("unknown tunnel type: %q", podvm.Printable(c.TunnelType, 64))
	}
	if err := checkName(c.Interface); err != nil {
		return fmt.Errorf("interface: %w", err)
	}
	switch {
	case !usable(c.WorkerIP):
		return errors.New("worker-node-ip: missing, or not the address of a machine")
	case len(c.PodIPs) == 0:
		return errors.New("podip: missing")
	case c.PodHWAddr != nil && !unicast(c.PodHWAddr):
		return errors.New("pod-hw-addr: not the address of a device")
	case c.VXLANPort < 1 || c.VXLANPort > 65535:
		return fmt.Errorf("vxlan-port: %d is not in 1 to 65535", c.VXLANPort)
	case c.VXLANID < 1 || c.VXLANID > maxID:
		return fmt.Errorf("vxlan-id: %d is not in 1 to %d", c.VXLANID, maxID)
	case c.MTU != 0 && (c.MTU < c.leastMTU() || c.MTU > 65535):
		return fmt.Errorf("mtu: %d is not in %d to 65535", c.MTU, c.leastMTU())
	}
	for _, p := range c.PodIPs {
		if !usable(p.Addr()) {
			return fmt.Errorf("podip: %s is not an address of a pod", p)
		}
	}
	gateways := map[netip.Prefix]netip.Addr{}
	for i, r := range c.Routes {
		if gw, ok := gateways[r.Dst]; ok && gw != r.Gateway {
			return fmt.Errorf("routes[%d]: another route leads to %s", i, r.Dst)
		}
		gateways[r.Dst] = r.Gateway
		if r.Gateway.IsValid() && r.Gateway.Is4() != r.Dst.Addr().Is4() {
			return fmt.Errorf("routes[%d]: dst %s and gw %s are of two families", i, r.Dst, r.Gateway)
		}
		if err := c.checkDev(r.Dev); err != nil {
			return fmt.Errorf("routes[%d]: %w", i, err)
		}
	}
	for i, n := range c.Neighbors {
		if !usable(n.IP) {
			return fmt.Errorf("neighbors[%d]: ip: missing, or not the address of a neighbor", i)
		}
		if err := c.checkDev(n.Dev); err != nil {
			return fmt.Errorf("neighbors[%d]: %w", i, err)
		}
	}
	return nil
}

// checkDev accepts the tunnel device only. Upstream looks the device up in the
// pod's namespace, where there is no other yet but loopback.
func (c *Config) checkDev(dev string) error {
	if dev != "" && dev != c.Interface {
		return fmt.Errorf("dev: the pod has no device %q", podvm.Printable(dev, 64))
	}
	return nil
}

// addr4 is the pod's first IPv4 address; it is not valid if there is none.
func (c *Config) addr4() netip.Addr {
	for _, p := range c.PodIPs {
		if p.Addr().Is4() {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// leastMTU is what the pod's addresses need.
func (c *Config) leastMTU() int {
	for _, p := range c.PodIPs {
		if p.Addr().Is6() {
			return minMTU6
		}
	}
	return minMTU
}

// usable reports whether a is one machine's address, its own loopback aside.
func usable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// unicast reports whether a device can have the address m.
func unicast(m net.HardwareAddr) bool { return m[0]&1 == 0 && !bytes.Equal(m, make([]byte, 6)) }

// checkName accepts what the kernel takes as the name of a device, in visible
// ASCII, without %, which it would replace by a number, and not loopback's.
// Source: Linux dev_valid_name, net/core/dev.c v6.12.
func checkName(s string) error {
	bad := s == "" || len(s) >= unix.IFNAMSIZ || s == "." || s == ".." || s == "lo"
	for _, c := range []byte(s) {
		bad = bad || c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%'
	}
	if bad {
		return fmt.Errorf("%q is no name for a network device", podvm.Printable(s, 64))
	}
	return nil
}
