package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// imdsUp makes the way anew: a pair of devices between the namespaces, with
// neighbours that are told, so that neither end needs an address or answers for
// others, forwarding on just the devices that need it, and rules that let
// nothing through but requests to the services and their answers.
func (n *Network) imdsUp(ctx context.Context, pod netip.Addr) error {
	if !pod.Is4() {
		return fmt.Errorf("%w: the pod has no IPv4 address to ask a metadata service from", ErrConfig)
	}
	if err := n.imdsDown(ctx); err != nil {
		return err
	}
	nics, err := n.imdsDevices()
	if err != nil {
		return err
	}
	if err := n.imdsRules(ctx, pod); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.HardwareAddr = imdsRootDev, deviceGroup, imdsRootMAC
	pair := &netlink.Veth{
		LinkAttrs: attrs, PeerName: imdsPodDev, PeerHardwareAddr: imdsPodMAC, PeerNamespace: netlink.NsFd(int(n.pod.file.Fd())),
	}
	if err := n.do(ctx, "making "+imdsRootDev, func() error { return n.root.LinkAdd(pair) }); err != nil {
		return err
	}
	root, err := n.root.LinkByName(imdsRootDev)
	if err != nil {
		return err
	}
	inPod, err := n.pod.LinkByName(imdsPodDev)
	if err != nil {
		return err
	}
	if err := n.forward(ctx, root, nics); err != nil {
		return err
	}
	if err := n.join(ctx, n.root, root, imdsPodMAC, netip.Addr{}, pod); err != nil {
		return err
	}
	return n.join(ctx, n.pod, inPod, imdsRootMAC, pod, n.opts.IMDS...)
}

// join starts dev and leads to the addresses by it, which are all at peer.
func (n *Network) join(ctx context.Context, in *namespace, dev netlink.Link, peer net.HardwareAddr, from netip.Addr, to ...netip.Addr) error {
	name, index := dev.Attrs().Name, dev.Attrs().Index
	add := in.RouteAdd
	if in == n.pod {
		add = in.RouteAddEcmp // which puts it before a route the pod has there
	}
	if err := n.do(ctx, "starting "+name, func() error { return in.LinkSetUp(dev) }); err != nil {
		return err
	}
	for _, a := range to {
		neigh := &netlink.Neigh{LinkIndex: index, Family: netlink.FAMILY_V4, State: unix.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: peer}
		if err := n.do(ctx, "setting the neighbor "+a.String(), func() error { return in.NeighSet(neigh) }); err != nil {
			return err
		}
		way := &netlink.Route{LinkIndex: index, Dst: ipNet(netip.PrefixFrom(a, 32)), Src: from.AsSlice(), Scope: netlink.SCOPE_LINK}
		if err := n.do(ctx, "adding the route to "+a.String(), func() error { return add(way) }); err != nil {
			return err
		}
	}
	return nil
}

// imdsDevices are the devices by which the VM reaches the services.
func (n *Network) imdsDevices() ([]string, error) {
	var names []string
	for _, a := range n.opts.IMDS {
		routes, err := n.root.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 {
			return nil, fmt.Errorf("finding a route to the metadata service %s: %w", a, err)
		}
		l, err := n.root.LinkByIndex(routes[0].LinkIndex)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(names, l.Attrs().Name) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// forward lets packets through that come in by root or one of nics. Those that
// did not forward before are noted at root, which ends with what it is for.
func (n *Network) forward(ctx context.Context, root netlink.Link, nics []string) error {
	var changed []string
	for _, nic := range nics {
		was, err := n.forwarding(nic)
		if err != nil {
			return err
		}
		if !was {
			changed = append(changed, nic)
		}
	}
	if err := n.do(ctx, "noting what forwards", func() error { return n.root.LinkSetAlias(root, imdsAlias+strings.Join(changed, "/")) }); err != nil {
		return err
	}
	for _, dev := range append(changed, imdsRootDev) {
		if err := n.setForwarding(ctx, dev, "1"); err != nil {
			return err
		}
	}
	return nil
}

func forwardingFile(dev string) string {
	return filepath.Join("/proc/sys/net/ipv4/conf", dev, "forwarding")
}

func (n *Network) forwarding(dev string) (on bool, err error) {
	err = n.root.run(func() error {
		b, err := podvm.ReadFileMax(forwardingFile(dev), 16)
		on = strings.TrimSpace(string(b)) == "1"
		return err
	})
	return on, err
}

func (n *Network) setForwarding(ctx context.Context, dev, value string) error {
	return n.do(ctx, "setting forwarding of "+dev+" to "+value, func() error {
		return n.root.run(func() error { return os.WriteFile(forwardingFile(dev), []byte(value), 0) })
	})
}

// imdsDown takes the way away, whatever of it there is. The rules go last.
func (n *Network) imdsDown(ctx context.Context) error {
	root, err := n.root.link(imdsRootDev)
	if err != nil {
		return err
	}
	if root != nil {
		if root.Type() != "veth" || root.Attrs().Group != deviceGroup {
			return fmt.Errorf("%w: the VM has another device %s", ErrForeign, imdsRootDev)
		}
		names, _ := strings.CutPrefix(root.Attrs().Alias, imdsAlias)
		for dev := range strings.SplitSeq(names, "/") {
			if dev == "" {
				continue
			}
			if err := n.setForwarding(ctx, dev, "0"); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if err := n.do(ctx, "removing "+imdsRootDev, func() error { return n.root.LinkDel(root) }); err != nil {
			return err
		}
	}
	err = n.dropTable(ctx, false, imdsTable)
	if errors.Is(err, errNoNFT) {
		err = errors.Join(n.dropChain(ctx, false, "nat", "POSTROUTING"), n.dropChain(ctx, false, "filter", "FORWARD"), n.dropChain(ctx, false, "filter", "INPUT"))
	}
	return err
}
