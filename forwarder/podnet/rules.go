package podnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/tool"
)

// rawTable is our table of nf_tables, in the family of the tunnel.
const rawTable = "sealpod-podnet"

// peerpod prefixes our chains of iptables, as upstream's are called. Source:
// cloud-api-adaptor pkg/podnetwork/tunneler/vxlan/iptables.go at fbdde756.
const peerpod = "peerpod-"

func protocolFamily(six bool) byte {
	if six {
		return unix.NFPROTO_IPV6
	}
	return unix.NFPROTO_IPV4
}

// untrack keeps the tunnel's packets out of connection tracking: a reply to them
// is none, every flow of the pod would take an entry for each direction. Where
// the kernel has neither nf_tables nor iptables the tunnel works without.
func (n *Network) untrack(ctx context.Context) error {
	port, worker := n.config.VXLANPort, n.config.WorkerIP
	notrack := nftExpr{name: "notrack"}
	chains := []nftChain{
		{"output", "filter", unix.NF_INET_LOCAL_OUT, -300, [][]nftExpr{rule(notrack, toPort(unix.IPPROTO_UDP, port), destination(worker))}},
		{"prerouting", "filter", unix.NF_INET_PRE_ROUTING, -300, [][]nftExpr{rule(notrack, toPort(unix.IPPROTO_UDP, port), source(worker))}},
	}
	if err := n.dropTable(ctx, !worker.Is6(), rawTable); err != nil && !errors.Is(err, errNoNFT) {
		return err
	}
	err := n.setTable(ctx, worker.Is6(), rawTable, chains)
	if !errors.Is(err, errNoNFT) {
		return err
	}
	match := []string{"-p", "udp", "--dport", strconv.Itoa(port), "-m", "comment", "--comment", fmt.Sprintf("peerpod [vni:%d]", n.config.VXLANID), "-j", "NOTRACK"}
	err = errors.Join(
		n.setChain(ctx, worker.Is6(), "raw", "OUTPUT", append([]string{"-d", worker.String()}, match...)),
		n.setChain(ctx, worker.Is6(), "raw", "PREROUTING", append([]string{"-s", worker.String()}, match...)))
	if exit := (*tool.ExitError)(nil); errors.Is(err, tool.ErrMissing) || errors.As(err, &exit) {
		n.opts.Log.Warn("Connections of the tunnel are tracked, there are neither nf_tables nor iptables", "err", err)
		return nil
	}
	return err
}

// track takes back what untrack did.
func (n *Network) track(ctx context.Context) error {
	var errs []error
	for _, six := range []bool{false, true} {
		err := n.dropTable(ctx, six, rawTable)
		if errors.Is(err, errNoNFT) {
			if six != n.config.WorkerIP.Is6() {
				continue
			}
			err = errors.Join(n.dropChain(ctx, six, "raw", "OUTPUT"), n.dropChain(ctx, six, "raw", "PREROUTING"))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// setTable exchanges a table of nf_tables in the VM's namespace.
//
// Errors: errNoNFT.
func (n *Network) setTable(ctx context.Context, six bool, name string, chains []nftChain) error {
	old, err := n.hasTable(six, name)
	if err != nil {
		return err
	}
	return n.do(ctx, "setting the rules "+name, func() error {
		err := n.root.run(func() error {
			return nft(protocolFamily(six), func(b *batch) {
				if old {
					b.drop(name)
				}
				b.create(name, chains)
			})
		})
		if errors.Is(err, unix.ENOENT) { // a kind of rule whose module is missing
			return errors.Join(errNoNFT, err)
		}
		return err
	})
}

// dropTable removes a table of nf_tables, if there is one.
//
// Errors: errNoNFT.
func (n *Network) dropTable(ctx context.Context, six bool, name string) error {
	if old, err := n.hasTable(six, name); !old || err != nil {
		return err
	}
	return n.do(ctx, "removing the rules "+name, func() error {
		return n.root.run(func() error { return nft(protocolFamily(six), func(b *batch) { b.drop(name) }) })
	})
}

// hasTable reports whether there is a table of nf_tables in the VM's namespace.
//
// Errors: errNoNFT.
func (n *Network) hasTable(six bool, name string) (has bool, err error) {
	if n.opts.noNFT {
		return false, errNoNFT
	}
	err = n.root.run(func() (err error) {
		has, err = nftHas(protocolFamily(six), name)
		return err
	})
	return has, err
}

// setChain gives our chain of an iptables table these rules and sends hook's
// packets there, first of all.
func (n *Network) setChain(ctx context.Context, six bool, table, hook string, rules ...[]string) error {
	chain := peerpod + hook
	steps := [][]string{{"-F", chain}}
	for _, r := range rules {
		steps = append(steps, append([]string{"-A", chain}, r...))
	}
	if !n.succeeds(ctx, six, table, "-L", chain, "-n") {
		steps = slices.Insert(steps, 0, []string{"-N", chain})
	}
	if !n.succeeds(ctx, six, table, "-C", hook, "-j", chain) {
		steps = append(steps, []string{"-I", hook, "-j", chain})
	}
	for _, s := range steps {
		if err := n.do(ctx, fmt.Sprintf("changing the rules of %s: iptables %s %s", table, s[0], s[1]), func() error { return n.iptables(ctx, six, table, s...) }); err != nil {
			return err
		}
	}
	return nil
}

// dropChain removes our chain and the rule that leads there, as far as there are
// any.
func (n *Network) dropChain(ctx context.Context, six bool, table, hook string) error {
	chain := peerpod + hook
	var steps [][]string
	if n.succeeds(ctx, six, table, "-C", hook, "-j", chain) {
		steps = append(steps, []string{"-D", hook, "-j", chain})
	}
	if n.succeeds(ctx, six, table, "-L", chain, "-n") {
		steps = append(steps, []string{"-F", chain}, []string{"-X", chain})
	}
	for _, s := range steps {
		if err := n.do(ctx, fmt.Sprintf("changing the rules of %s: iptables %s %s", table, s[0], s[1]), func() error { return n.iptables(ctx, six, table, s...) }); err != nil {
			return err
		}
	}
	return nil
}

// succeeds asks iptables a question.
func (n *Network) succeeds(ctx context.Context, six bool, table string, args ...string) bool {
	return n.iptables(ctx, six, table, args...) == nil
}

// iptables runs the program in the VM's namespace. What has its plain name may
// be the one that needs nf_tables, so the legacy one comes first.
func (n *Network) iptables(ctx context.Context, six bool, table string, args ...string) error {
	names := []string{"iptables-legacy", "iptables"}
	if six {
		names = []string{"ip6tables-legacy", "ip6tables"}
	}
	var err error
	for _, name := range names {
		err = n.root.run(func() error {
			_, err := tool.Runner{Host: n.opts.Host}.Run(ctx, nil, name, append([]string{"-w", "5", "-t", table}, args...)...)
			return err
		})
		if !errors.Is(err, tool.ErrMissing) {
			return err
		}
	}
	return err
}
