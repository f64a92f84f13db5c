package podnet

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What is on the tunnel device is compared with the configuration: what is too
// much goes, what is missing comes, also if the pod itself changed it. On a new
// device everything is missing.

// fillAddrs gives the device the pod's addresses and no others. The kernel makes
// no route to their subnets: plugins such as ptp have none, and send the route
// where they do.
func (n *Network) fillAddrs(ctx context.Context, dev netlink.Link) error {
	have, err := n.addrs(n.pod, dev)
	if err != nil {
		return err
	}
	missing := slices.Clone(n.config.PodIPs)
	for _, a := range have {
		if i := slices.Index(missing, prefixOf(a.IPNet)); i >= 0 && a.Flags&unix.IFA_F_NOPREFIXROUTE != 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if err := n.do(ctx, "removing the address "+a.IP.String(), func() error { return n.pod.AddrDel(dev, &a) }); err != nil {
			return err
		}
	}
	for _, p := range missing {
		a := netlink.Addr{IPNet: ipNet(p), Flags: unix.IFA_F_NOPREFIXROUTE}
		if p.Addr().Is6() {
			a.Flags |= unix.IFA_F_NODAD // nobody else has it, and it is needed now
		}
		if err := n.do(ctx, "adding the address "+p.String(), func() error { return n.pod.AddrAdd(dev, &a) }); err != nil {
			return err
		}
	}
	return nil
}

// wantedRoutes are those of the configuration, one to each destination, those without a gateway
// first: they say how a gateway is reached. If the pod has a network interface of
// the VM, default routes are by that.
func (n *Network) wantedRoutes() []Route {
	var first, second []Route
	seen := map[netip.Prefix]bool{}
	for _, r := range n.config.Routes {
		r.Dev = n.config.Interface
		if r.Protocol == 0 {
			r.Protocol = unix.RTPROT_BOOT
		}
		switch {
		case n.config.ExternalNetViaPodVM && r.Dst.Bits() == 0 || seen[r.Dst]:
		case r.Gateway.IsValid():
			second = append(second, r)
		default:
			r.Scope = unix.RT_SCOPE_LINK
			first = append(first, r)
		}
		seen[r.Dst] = true
	}
	return append(first, second...)
}

// fillRoutes gives the device the pod's routes and no others.
func (n *Network) fillRoutes(ctx context.Context, dev netlink.Link) error {
	missing := n.wantedRoutes()
	have, err := n.routesOf(n.pod, dev)
	if err != nil {
		return err
	}
	// Backwards, lest a gateway lose its way before the route that needs it.
	for _, r := range slices.Backward(have) {
		if i := slices.IndexFunc(missing, func(w Route) bool { return sameRoute(r, w) }); i >= 0 {
			missing = slices.Delete(missing, i, i+1)
			continue
		}
		if kernels(r) {
			continue
		}
		if err := n.do(ctx, fmt.Sprintf("removing the route to %s", r.Dst), func() error { return n.pod.RouteDel(&r) }); err != nil {
			return err
		}
	}
	for _, r := range missing {
		add := netlink.Route{
			LinkIndex: dev.Attrs().Index, Dst: ipNet(r.Dst), Gw: r.Gateway.AsSlice(),
			Protocol: netlink.RouteProtocol(r.Protocol), Scope: netlink.Scope(r.Scope),
		}
		doing := fmt.Sprintf("adding the route to %s", r.Dst)
		if r.Gateway.IsValid() {
			doing += " by " + r.Gateway.String()
		}
		if err := n.do(ctx, doing, func() error { return n.pod.RouteReplace(&add) }); err != nil {
			return err
		}
	}
	return nil
}

// routesOf returns the unicast routes of the main table by a device.
func (n *Network) routesOf(in *namespace, dev netlink.Link) ([]netlink.Route, error) {
	filter := &netlink.Route{LinkIndex: dev.Attrs().Index, Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
	routes, err := list(func() ([]netlink.Route, error) {
		return in.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes of %s: %w", dev.Attrs().Name, err)
	}
	return routes, nil
}

// kernels reports whether the kernel makes a route of IPv6 by itself: to
// link-local addresses, or because a router said so.
func kernels(r netlink.Route) bool {
	linkLocal := r.Dst != nil && r.Dst.IP.To4() == nil && r.Dst.IP.IsLinkLocalUnicast()
	return r.Protocol == unix.RTPROT_RA || r.Protocol == unix.RTPROT_KERNEL && linkLocal
}

// sameRoute compares a route of the kernel. It knows no scopes for IPv6.
func sameRoute(got netlink.Route, want Route) bool {
	gw, _ := netip.AddrFromSlice(got.Gw)
	dst := prefixOf(got.Dst)
	if !dst.IsValid() {
		dst = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return dst == want.Dst && gw.Unmap() == want.Gateway && int(got.Protocol) == int(want.Protocol) &&
		(want.Dst.Addr().Is6() || int(got.Scope) == int(want.Scope))
}

// fillNeighbors gives the device the pod's neighbours and no other permanent
// ones.
func (n *Network) fillNeighbors(ctx context.Context, dev netlink.Link) error {
	index := dev.Attrs().Index
	have, err := list(func() ([]netlink.Neigh, error) { return n.pod.NeighList(index, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing neighbors: %w", err)
	}
	for _, old := range have {
		wanted := slices.ContainsFunc(n.config.Neighbors, func(w Neighbor) bool { return w.State != stateNone && net.IP(w.IP.AsSlice()).Equal(old.IP) })
		if wanted || old.State != unix.NUD_PERMANENT || old.Family == unix.AF_BRIDGE {
			continue
		}
		if err := n.do(ctx, "removing the neighbor "+old.IP.String(), func() error { return n.pod.NeighDel(&old) }); err != nil {
			return err
		}
	}
	for _, w := range n.config.Neighbors {
		if w.State == stateNone {
			continue
		}
		add := netlink.Neigh{LinkIndex: index, Family: family(w.IP), State: int(w.State), IP: w.IP.AsSlice(), HardwareAddr: w.HWAddr}
		if add.State == 0 {
			add.State = unix.NUD_PERMANENT
		}
		if err := n.do(ctx, "setting the neighbor "+w.IP.String(), func() error { return n.pod.NeighSet(&add) }); err != nil {
			return err
		}
	}
	return nil
}
