package podnet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrForeign says that something that is not the forwarder's is where the pod
// network belongs.
var ErrForeign = errors.New("in use by something else")

// deviceGroup marks our devices, so that a later process knows them. The number
// has no meaning; ip link shows it as "group 1397771853".
const deviceGroup = 0x5350_4e4d

// upstreamName is what cloud-api-adaptor's forwarder calls a tunnel device it did
// not finish. Source: pkg/podnetwork/tunneler/vxlan/podnode.go at fbdde756.
const upstreamName = "vxlan0"

// tunnel makes the tunnel device what the configuration wants, from whatever an
// earlier run left.
func (n *Network) tunnel(ctx context.Context, u *underlay) error {
	mtu, err := n.tunnelMTU(u)
	if err != nil {
		return err
	}
	dev, err := n.device(ctx, u, mtu)
	if err != nil {
		return err
	}
	if dev.Attrs().MTU != mtu {
		if err := n.do(ctx, "setting the MTU of the tunnel device", func() error { return n.pod.LinkSetMTU(dev, mtu) }); err != nil {
			return err
		}
	}
	if err := n.fillAddrs(ctx, dev); err != nil {
		return err
	}
	if dev.Attrs().Flags&net.FlagUp == 0 {
		if err := n.do(ctx, "starting the tunnel device", func() error { return n.pod.LinkSetUp(dev) }); err != nil {
			return err
		}
	}
	if err := n.fillRoutes(ctx, dev); err != nil {
		return err
	}
	return n.fillNeighbors(ctx, dev)
}

// device returns the tunnel device. It is made in the pod's namespace by one
// request from the VM's, whose network it uses from then on: a crash leaves all
// of it or nothing.
func (n *Network) device(ctx context.Context, u *underlay, mtu int) (netlink.Link, error) {
	want := n.vxlan(u, mtu)
	if err := n.removeTunnels(ctx, want); err != nil {
		return nil, err
	}
	old, err := n.pod.link(want.Name)
	switch {
	case err != nil:
		return nil, fmt.Errorf("looking for %s: %w", want.Name, err)
	case old != nil && !n.ours(old):
		return nil, fmt.Errorf("%w: the pod's namespace has a device %s of type %s", ErrForeign, want.Name, old.Type())
	case old != nil:
		return old, nil
	}
	err = n.do(ctx, "making the tunnel device", func() error { return n.root.LinkAdd(want) })
	if errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("%w: another VXLAN device has the identifier %d and the port %d: %w", ErrForeign, want.VxlanId, want.Port, err)
	}
	if err != nil {
		return nil, err
	}
	dev, err := n.pod.LinkByName(want.Name)
	if err != nil {
		return nil, fmt.Errorf("looking for %s: %w", want.Name, err)
	}
	return dev, nil
}

// vxlan is the tunnel device as it should be. The far end does not learn, nor
// does ours: there is one peer.
func (n *Network) vxlan(u *underlay, mtu int) *netlink.Vxlan {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr, attrs.Group = n.config.Interface, mtu, n.config.PodHWAddr, deviceGroup
	attrs.Namespace = netlink.NsFd(int(n.pod.file.Fd()))
	v := &netlink.Vxlan{
		LinkAttrs: attrs, VxlanId: n.config.VXLANID, Port: n.config.VXLANPort, Group: n.config.WorkerIP.AsSlice(), UDPCSum: true,
	}
	if u.bound != nil {
		v.VtepDevIndex, v.SrcAddr = u.bound.Attrs().Index, u.source.AsSlice()
	}
	return v
}

// ours reports whether a process like this one made the device: it carries our
// mark, or what upstream's forwarder would have made of the same configuration.
func (n *Network) ours(l netlink.Link) bool {
	v, ok := l.(*netlink.Vxlan)
	if !ok {
		return false
	}
	return v.LinkAttrs.Group == deviceGroup || v.VxlanId == n.config.VXLANID && v.Port == n.config.VXLANPort &&
		(v.Name == n.config.Interface || v.Name == upstreamName)
}

// removeTunnels removes our tunnel devices from both namespaces, except the one
// that is as wanted; nil wants none.
func (n *Network) removeTunnels(ctx context.Context, want *netlink.Vxlan) error {
	var errs []error
	for _, in := range []*namespace{n.root, n.pod} {
		if in == nil {
			continue
		}
		links, err := list(in.LinkList)
		if err != nil {
			errs = append(errs, fmt.Errorf("listing devices: %w", err))
		}
		for _, l := range links {
			if !n.ours(l) || in == n.root && l.Attrs().Name == n.config.Interface && l.Attrs().Group != deviceGroup ||
				in == n.pod && want != nil && same(l.(*netlink.Vxlan), want) {
				continue
			}
			errs = append(errs, n.do(ctx, "removing the tunnel device "+l.Attrs().Name, func() error { return in.LinkDel(l) }))
		}
	}
	return errors.Join(errs...)
}

// same reports whether a device is what we would make, but for its MTU.
func same(got, want *netlink.Vxlan) bool {
	return got.Name == want.Name && got.NetNsID >= 0 && // it uses the network of another namespace
		got.LinkAttrs.Group == want.LinkAttrs.Group && got.VxlanId == want.VxlanId && got.Port == want.Port &&
		got.Group.Equal(want.Group) && got.VtepDevIndex == want.VtepDevIndex && got.SrcAddr.Equal(want.SrcAddr) && !got.Learning && got.UDPCSum &&
		(want.HardwareAddr == nil || bytes.Equal(got.HardwareAddr, want.HardwareAddr))
}

// addrs returns the addresses of a device, without those the kernel gives itself.
func (n *Network) addrs(in *namespace, l netlink.Link) ([]netlink.Addr, error) {
	all, err := list(func() ([]netlink.Addr, error) { return in.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("listing addresses of %s: %w", l.Attrs().Name, err)
	}
	var found []netlink.Addr
	for _, a := range all {
		if a.IP.To4() != nil || !a.IP.IsLinkLocalUnicast() {
			found = append(found, a)
		}
	}
	return found, nil
}

// hasFamily reports whether one of the addresses is of the family of as.
func hasFamily(addrs []netlink.Addr, as netip.Addr) bool {
	for _, a := range addrs {
		if (a.IP.To4() != nil) == as.Is4() {
			return true
		}
	}
	return false
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf is the reverse of ipNet; nil is not valid.
func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
