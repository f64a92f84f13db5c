package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// lentNIC is how a network interface of the VM was before the pod got it. The
// kernel forgets addresses and routes on the way between namespaces.
type lentNIC struct {
	Name    string
	HWAddr  []byte
	Up      bool
	Addrs   []netlink.Addr
	Routes  []netlink.Route
	Default []netlink.Route // what the pod's default routes are to be
}

// maxState caps the file of a lentNIC, in bytes.
const maxState = 1 << 20

// virtual are names of devices that are no network interfaces of a VM. Source:
// cloud-api-adaptor pkg/podnetwork/common.go at fbdde756.
var virtual = []string{"veth", "lo", "docker", "podman", "br-", "cni", "tunl", "tun", "tap"}

// lend gives the pod a second network interface of the VM, with its addresses
// and a default route, or makes right what a killed process left of that.
//
// It waits for one, and having none is an error, which upstream only logs: the
// host asked for another way out of the pod, and one that silently leads over
// the worker instead would be a surprise for whoever relies on it.
func (n *Network) lend(ctx context.Context, u *underlay, lent *lentNIC) error {
	if lent == nil {
		err := n.root.wait(ctx, func() (found bool, err error) {
			lent, err = n.candidate(u)
			return lent != nil, err
		})
		if err != nil {
			return fmt.Errorf("finding one besides %s with an address and a way out: %w", u.primary.Attrs().Name, err)
		}
		if err := n.do(ctx, "keeping how "+lent.Name+" was", func() error { return n.save(lent) }); err != nil {
			return err
		}
		nic, err := n.root.LinkByName(lent.Name)
		if err != nil {
			return err
		}
		if err := n.do(ctx, "moving "+lent.Name+" to the pod", func() error { return n.root.LinkSetNsFd(nic, int(n.pod.file.Fd())) }); err != nil {
			return err
		}
		n.opts.Log.Info("The pod has a network interface of its own", "interface", lent.Name)
	}
	nic, err := n.pod.LinkByName(lent.Name)
	if err != nil {
		return err
	}
	addrs := slices.Clone(lent.Addrs)
	for i := range addrs {
		addrs[i].Flags &^= unix.IFA_F_NOPREFIXROUTE    // whose routes did not come along
		addrs[i].ValidLft, addrs[i].PreferedLft = 0, 0 // for good: nobody renews a lease here
	}
	return n.dress(ctx, n.pod, nic, addrs, lent.Default)
}

// candidate returns the first network interface, besides those the VM needs, that
// has a default route, or an address of the primary one's subnet and thereby its
// gateway; nil if there is none yet.
func (n *Network) candidate(u *underlay) (*lentNIC, error) {
	links, err := list(n.root.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	slices.SortFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	defaults, err := n.defaults(n.root, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	primary, err := n.addrs(n.root, u.primary)
	if err != nil {
		return nil, err
	}
	// Two in one subnet both lead to the worker: the tunnel then goes by the
	// primary one.
	spare, err := n.reaches(u.primary)
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		a := l.Attrs()
		if a.Index == u.primary.Attrs().Index || a.Index == u.nic.Attrs().Index && !spare || a.Name == n.opts.HostInterface || n.ours(l) ||
			slices.ContainsFunc(virtual, func(p string) bool { return strings.HasPrefix(a.Name, p) }) {
			continue
		}
		lent := &lentNIC{Name: a.Name, HWAddr: a.HardwareAddr, Up: a.Flags&net.FlagUp != 0}
		if lent.Addrs, err = n.addrs(n.root, l); err != nil {
			return nil, err
		}
		if lent.Routes, err = n.keptRoutes(l); err != nil {
			return nil, err
		}
		lent.Default = wayOut(lent.Addrs, primary, defaults, a.Index, u.primary.Attrs().Index)
		if len(lent.Default) > 0 {
			return lent, nil
		}
	}
	return nil, nil
}

// wayOut returns the default routes, one for each family, of a device with these
// addresses: its own, or the gateway of the primary one.
func wayOut(addrs, primary []netlink.Addr, defaults []netlink.Route, index, primaryIndex int) []netlink.Route {
	var out []netlink.Route
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if !hasFamily(addrs, any) {
			continue
		}
		neighbors := slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
			return slices.ContainsFunc(primary, func(p netlink.Addr) bool {
				return (a.IP.To4() != nil) == any.Is4() && prefixOf(a.IPNet).Masked() == prefixOf(p.IPNet).Masked()
			})
		})
		var best *netlink.Route
		for _, r := range defaults {
			fits := r.LinkIndex == index || neighbors && r.LinkIndex == primaryIndex
			own := best != nil && best.LinkIndex == index
			if r.Family == family(any) && r.Protocol != unix.RTPROT_RA && fits &&
				(best == nil || r.LinkIndex == index && !own || (r.LinkIndex == index) == own && r.Priority < best.Priority) {
				best = &r
			}
		}
		if best != nil {
			out = append(out, netlink.Route{Dst: ipNet(netip.PrefixFrom(any, 0)), Gw: best.Gw, Scope: best.Scope, Protocol: unix.RTPROT_BOOT, Flags: best.Flags & int(netlink.FLAG_ONLINK)})
		}
	}
	return out
}

// keptRoutes are the routes of a device in all tables but those to itself, and
// the ones that the kernel or a router makes for IPv6 of themselves.
func (n *Network) keptRoutes(l netlink.Link) ([]netlink.Route, error) {
	filter := &netlink.Route{LinkIndex: l.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
	routes, err := list(func() ([]netlink.Route, error) {
		return n.root.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("listing routes of %s: %w", l.Attrs().Name, err)
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool {
		return r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST || kernels(r)
	}), nil
}

// dress gives a device addresses and routes, as far as it lacks them, and starts
// it.
func (n *Network) dress(ctx context.Context, in *namespace, nic netlink.Link, addrs []netlink.Addr, routes []netlink.Route) error {
	name := nic.Attrs().Name
	for _, a := range addrs {
		a.Flags &^= unix.IFA_F_SECONDARY | unix.IFA_F_TENTATIVE | unix.IFA_F_DADFAILED
		if a.Broadcast == nil {
			a.Broadcast = net.IPv4zero // none, rather than the one the library would make up
		}
		if err := n.do(ctx, "giving "+name+" the address "+a.IP.String(), func() error { return in.AddrReplace(nic, &a) }); err != nil {
			return err
		}
	}
	if err := n.do(ctx, "starting "+name, func() error { return in.LinkSetUp(nic) }); err != nil {
		return err
	}
	// Those without a gateway say how one is reached.
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return len(a.Gw) - len(b.Gw) })
	for _, r := range routes {
		r.LinkIndex = nic.Attrs().Index
		put := in.RouteReplace
		if in == n.root { // where another device may have one with the same metric
			put = func(r *netlink.Route) error {
				if err := in.RouteAppend(r); !errors.Is(err, unix.EEXIST) {
					return err
				}
				return nil
			}
		}
		if err := n.do(ctx, fmt.Sprintf("giving %s the route to %s", name, r.Dst), func() error { return put(&r) }); err != nil {
			return err
		}
	}
	return nil
}
