package podnet

import (
	"context"
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// imdsRules lets the pod ask the services, in the name of the VM, and nothing
// else pass between it and the VM.
func (n *Network) imdsRules(ctx context.Context, pod netip.Addr) error {
	accept, drop := verdict(nfAccept), verdict(nfDrop)
	in, out := device(unix.NFT_META_IIFNAME, imdsRootDev), device(unix.NFT_META_OIFNAME, imdsRootDev)
	post := nftChain{"postrouting", "nat", unix.NF_INET_POST_ROUTING, 100, nil}
	forward := nftChain{"forward", "filter", unix.NF_INET_FORWARD, 0, nil}
	input := nftChain{"input", "filter", unix.NF_INET_LOCAL_IN, 0, [][]nftExpr{rule(drop, in)}}
	var nat, filter [][]string
	for _, a := range n.opts.IMDS {
		post.rules = append(post.rules, rule(nftExpr{name: "masq"}, source(pod), destination(a)))
		forward.rules = append(forward.rules, rule(accept, in, source(pod), destination(a)))
		nat = append(nat, []string{"-s", pod.String(), "-d", a.String(), "-j", "MASQUERADE"})
		filter = append(filter, []string{"-i", imdsRootDev, "-s", pod.String(), "-d", a.String(), "-j", "ACCEPT"})
	}
	forward.rules = append(forward.rules, rule(drop, in), rule(accept, out, established()), rule(drop, out))
	err := n.setTable(ctx, false, imdsTable, []nftChain{post, forward, input})
	if !errors.Is(err, errNoNFT) {
		return err
	}
	filter = append(filter, []string{"-i", imdsRootDev, "-j", "DROP"},
		[]string{"-o", imdsRootDev, "-m", "conntrack", "--ctstate", "ESTABLISHED,RELATED", "-j", "ACCEPT"}, []string{"-o", imdsRootDev, "-j", "DROP"})
	// The filter first: there is never a way without it.
	for _, c := range []struct {
		table, hook string
		rules       [][]string
	}{{"filter", "INPUT", [][]string{{"-i", imdsRootDev, "-j", "DROP"}}}, {"filter", "FORWARD", filter}, {"nat", "POSTROUTING", nat}} {
		if err := n.setChain(ctx, false, c.table, c.hook, c.rules...); err != nil {
			return err
		}
	}
	return nil
}
