package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// imdsTimeout is how long SetupIMDS waits for the pod's network, as upstream's
// unit does. Source: cloud-api-adaptor podvm/files/usr/local/bin/setup-nat-for-imds.sh
// at fbdde756.
const imdsTimeout = time.Minute

// The two ends of the way to a metadata service, the alias that says which
// devices forward for it that did not before, and our table of nf_tables.
const (
	imdsRootDev = "veth-imds"
	imdsPodDev  = "imds"
	imdsAlias   = "forwarding for the pod: "
	imdsTable   = "sealpod-imds"
)

// The ends' own MAC addresses, locally administered; nobody else is on that link.
var (
	imdsRootMAC = net.HardwareAddr{0x02, 'S', 'P', 'N', 'M', 1}
	imdsPodMAC  = net.HardwareAddr{0x02, 'S', 'P', 'N', 'M', 2}
)

// metadataServices are the addresses clouds have them at: Alibaba Cloud's, and
// all others'.
var metadataServices = []netip.Addr{netip.AddrFrom4([4]byte{169, 254, 169, 254}), netip.AddrFrom4([4]byte{100, 100, 100, 200})}

// ParseIMDS reads the addresses of metadata services, separated by commas: of
// 169.254.169.254 and, for Alibaba Cloud, 100.100.100.200; "" is none. Others
// are ErrConfig, since this is no way into the network of the VM.
func ParseIMDS(text string) ([]netip.Addr, error) {
	if text == "" {
		return nil, nil
	}
	var all []netip.Addr
	for s := range strings.SplitSeq(text, ",") {
		a, err := netip.ParseAddr(strings.TrimSpace(s))
		if err != nil || !slices.Contains(metadataServices, a) {
			return nil, fmt.Errorf("%w: %q is not the address of a metadata service: want %v", ErrConfig, podvm.Printable(s, 64), metadataServices)
		}
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	return all, nil
}

// SetupIMDS gives a pod a way to the metadata services of o.IMDS, 169.254.169.254
// if that is empty, once the pod's network is up. It can be repeated, and waits a
// minute at most.
//
// Every container of the pod, and whoever breaks into one, can then act in the
// cloud with the identity of the VM, and read its user data. Give the VM no
// identity worth having, or leave this off.
func SetupIMDS(ctx context.Context, o Options) error {
	return withIMDS(o, false, func(n *Network) error {
		ctx, cancel := context.WithTimeoutCause(ctx, imdsTimeout, fmt.Errorf("the pod has no network after %s", imdsTimeout))
		defer cancel()
		var pod netip.Addr
		err := n.pod.wait(ctx, func() (found bool, err error) {
			pod, err = n.podAddr()
			return pod.IsValid(), err
		})
		if err != nil {
			return fmt.Errorf("finding the pod's address: %w", err)
		}
		if err := n.imdsUp(ctx, pod); err != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			return errors.Join(err, n.imdsDown(ctx))
		}
		return nil
	})
}

// TeardownIMDS takes back what SetupIMDS did. It can be repeated.
func TeardownIMDS(ctx context.Context, o Options) error {
	return withIMDS(o, true, func(n *Network) error { return n.imdsDown(ctx) })
}

func withIMDS(o Options, alone bool, f func(*Network) error) error {
	if len(o.IMDS) == 0 {
		o.IMDS = metadataServices[:1]
	}
	n := newNetwork(Config{}, o)
	if err := n.open(alone); err != nil {
		return err
	}
	defer n.shut()
	return f(n)
}

// podAddr returns the IPv4 address of the tunnel device, not valid if there is
// none yet.
func (n *Network) podAddr() (netip.Addr, error) {
	links, err := list(n.pod.LinkList)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("listing devices: %w", err)
	}
	for _, l := range links {
		if l.Type() != "vxlan" || l.Attrs().Group != deviceGroup {
			continue
		}
		addrs, err := n.addrs(n.pod, l)
		if err != nil {
			return netip.Addr{}, err
		}
		for _, a := range addrs {
			if p := prefixOf(a.IPNet); p.Addr().Is4() {
				return p.Addr(), nil
			}
		}
	}
	return netip.Addr{}, nil
}
