package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// overhead is what VXLAN puts before a packet of the pod, in bytes: the inner
// Ethernet header, VXLAN, UDP and the outer IP header. Source: RFC 7348 section 5.
const (
	overhead4 = 14 + 8 + 8 + 20
	overhead6 = 14 + 8 + 8 + 40
	// maxMTU is what cloud-api-adaptor gives its end at most, whatever the
	// network between could carry; a bigger packet would be lost there.
	// Source: pkg/podnetwork/tunneler/vxlan/podnode.go at fbdde756.
	maxMTU = 1450
)

// underlay is the network of the VM as the tunnel sees it.
type underlay struct {
	// nic carries the tunnel's packets to the worker; source is its address.
	nic    netlink.Link
	source netip.Addr
	// bound is the network interface the tunnel is bound to, nil for none.
	bound netlink.Link
	// primary is the network interface of the best default route.
	primary netlink.Link
	// mtu is the largest packet to the worker.
	mtu int
}

// underlay waits until there is a way to the worker, which has a source address
// then. Of several addresses of one network interface the kernel's choice counts,
// as it will for every packet.
func (n *Network) underlay(ctx context.Context) (u *underlay, err error) {
	said := false
	err = n.root.wait(ctx, func() (bool, error) {
		if u, err = n.route(nil); u == nil && err == nil && !said {
			said = true
			n.opts.Log.Info("Waiting for a route to the worker node", "worker", n.config.WorkerIP)
		}
		return u != nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("finding a route to the worker node %s: %w", n.config.WorkerIP, err)
	}
	if u.primary, err = n.primary(u.nic); err != nil {
		return nil, err
	}
	if n.config.Dedicated {
		return n.dedicated(ctx, u)
	}
	return u, nil
}

// route asks the kernel for the way to the worker, by the device via unless that
// is nil. There is none yet if it returns nil.
func (n *Network) route(via netlink.Link) (*underlay, error) {
	var opts netlink.RouteGetOptions
	if via != nil {
		opts.OifIndex = via.Attrs().Index
	}
	routes, err := n.root.RouteGetWithOptions(n.config.WorkerIP.AsSlice(), &opts)
	switch {
	case errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETDOWN):
		return nil, nil
	case err != nil || len(routes) == 0:
		return nil, err
	}
	r := routes[0]
	if r.Type == unix.RTN_LOCAL {
		return nil, errors.New("it is an address of this VM")
	}
	source, ok := netip.AddrFromSlice(r.Src)
	if !ok || source.IsUnspecified() {
		return nil, nil
	}
	nic, err := n.root.LinkByIndex(r.LinkIndex)
	if err != nil {
		return nil, err
	}
	u := &underlay{nic: nic, source: source.Unmap(), mtu: nic.Attrs().MTU}
	if r.MTU > 0 {
		u.mtu = min(u.mtu, r.MTU)
	}
	return u, nil
}

// primary returns the device of the default route with the lowest metric, or
// the one that leads to the worker where there is no default route. Of several
// with that metric, as DHCP makes them, it is the one with the lowest number in its
// name, as upstream: which lease came first means nothing.
func (n *Network) primary(worker netlink.Link) (netlink.Link, error) {
	defaults, err := n.defaults(n.root, family(n.config.WorkerIP))
	if err != nil || len(defaults) == 0 {
		return worker, err
	}
	lowest := slices.MinFunc(defaults, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) }).Priority
	var best netlink.Link
	for _, r := range defaults {
		if r.Priority != lowest {
			continue
		}
		l, err := n.root.LinkByIndex(r.LinkIndex)
		if err != nil {
			return nil, err
		}
		if best == nil || byNumber(l.Attrs().Name, best.Attrs().Name) < 0 {
			best = l
		}
	}
	return best, nil
}

// byNumber compares names such as ens3 and ens10.
func byNumber(a, b string) int {
	return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
}

// defaults returns the default routes of the main table, those of several next
// hops by their first.
func (n *Network) defaults(in *namespace, family int) ([]netlink.Route, error) {
	all, err := list(func() ([]netlink.Route, error) {
		return in.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes: %w", err)
	}
	var found []netlink.Route
	for _, r := range all {
		if r.Type != unix.RTN_UNICAST || r.Dst != nil && ones(r) != 0 {
			continue
		}
		if r.LinkIndex == 0 && len(r.MultiPath) > 0 {
			r.LinkIndex, r.Gw = r.MultiPath[0].LinkIndex, r.MultiPath[0].Gw
		}
		if r.LinkIndex != 0 {
			found = append(found, r)
		}
	}
	return found, nil
}

func ones(r netlink.Route) int {
	bits, _ := r.Dst.Mask.Size()
	return bits
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

// dedicated waits for an address on the network interface of the tunnel, and
// binds the tunnel to it where it has a way to the worker.
func (n *Network) dedicated(ctx context.Context, u *underlay) (*underlay, error) {
	name := n.opts.HostInterface
	if name == "" || name == u.primary.Attrs().Name {
		return nil, fmt.Errorf("%s is not a dedicated interface", u.primary.Attrs().Name)
	}
	var own *underlay
	err := n.root.wait(ctx, func() (bool, error) {
		nic, err := n.root.link(name)
		if nic == nil || err != nil {
			return false, err
		}
		if has, err := n.addrs(n.root, nic); err != nil || !hasFamily(has, n.config.WorkerIP) {
			return false, err
		}
		own, err = n.route(nic)
		return own != nil, err
	})
	if err != nil {
		return nil, fmt.Errorf("waiting for an address on %s: %w", name, err)
	}
	own.primary = u.primary
	// The kernel takes a destination without a route for a neighbour when it
	// is asked for the way by one device.
	if reached, err := n.reaches(own.nic); err != nil {
		return nil, err
	} else if !reached {
		n.opts.Log.Warn("The dedicated interface has no route to the worker node, packets to it leave by another",
			"dedicated", name, "by", u.nic.Attrs().Name)
		return u, nil
	}
	own.bound = own.nic
	return own, nil
}

// reaches reports whether a route by nic leads to the worker.
func (n *Network) reaches(nic netlink.Link) (bool, error) {
	routes, err := list(func() ([]netlink.Route, error) {
		return n.root.RouteListFiltered(family(n.config.WorkerIP), &netlink.Route{LinkIndex: nic.Attrs().Index}, netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return false, fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.Contains(n.config.WorkerIP.AsSlice()) {
			return true, nil
		}
	}
	return false, nil
}

// tunnelMTU is what fits into the underlay's packets, what the worker's end takes
// and what the pod's interface there has, whichever is least.
func (n *Network) tunnelMTU(u *underlay) (int, error) {
	overhead := overhead4
	if n.config.WorkerIP.Is6() {
		overhead = overhead6
	}
	mtu := min(maxMTU, u.mtu-overhead)
	if n.config.MTU > 0 {
		mtu = min(mtu, n.config.MTU)
	}
	if least := n.config.leastMTU(); mtu < least {
		return 0, fmt.Errorf("packets of %d bytes by %s leave %d for the pod, which needs %d", u.mtu, u.nic.Attrs().Name, mtu, least)
	}
	return mtu, nil
}
