package podnet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// recover looks at what an earlier process lent. It returns that if the pod still
// has it and is to have it; anything else is put back.
func (n *Network) recover(ctx context.Context) (*lentNIC, error) {
	lent, err := n.load()
	if err != nil || lent == nil {
		return nil, err
	}
	if n.config.ExternalNetViaPodVM {
		if nic, err := n.find(n.pod, lent); nic != nil || err != nil {
			return lent, err
		}
	}
	return nil, n.giveBack(ctx)
}

// giveBack returns a lent network interface to the VM and makes it what it was.
func (n *Network) giveBack(ctx context.Context) error {
	lent, err := n.load()
	if err != nil || lent == nil {
		return err
	}
	nic, err := n.find(n.pod, lent)
	if err != nil {
		return err
	}
	if nic != nil {
		if err := n.do(ctx, "moving "+lent.Name+" back", func() error { return n.pod.LinkSetNsFd(nic, int(n.root.file.Fd())) }); err != nil {
			return err
		}
	}
	if nic, err = n.find(n.root, lent); err != nil {
		return err
	}
	switch {
	case nic == nil:
		n.opts.Log.Warn("The network interface lent to the pod is gone", "interface", lent.Name)
	case lent.Up:
		if err := n.dress(ctx, n.root, nic, lent.Addrs, lent.Routes); err != nil {
			return err
		}
		if err := n.strip(ctx, nic, lent.Routes); err != nil {
			return err
		}
	}
	return n.do(ctx, "forgetting how "+lent.Name+" was", func() error { return os.Remove(n.opts.State) })
}

// strip removes routes that came with the addresses, but were not there before.
func (n *Network) strip(ctx context.Context, nic netlink.Link, keep []netlink.Route) error {
	have, err := n.keptRoutes(nic)
	if err != nil {
		return err
	}
	for _, r := range have {
		known := slices.ContainsFunc(keep, func(k netlink.Route) bool {
			return prefixOf(k.Dst) == prefixOf(r.Dst) && k.Priority == r.Priority && k.Table == r.Table
		})
		if known || r.Protocol != unix.RTPROT_KERNEL {
			continue
		}
		if err := n.do(ctx, fmt.Sprintf("removing the route to %s", r.Dst), func() error { return n.root.RouteDel(&r) }); err != nil {
			return err
		}
	}
	return nil
}

// find returns the device lent is about, nil if it is not in the namespace.
func (n *Network) find(in *namespace, lent *lentNIC) (netlink.Link, error) {
	if in == nil {
		return nil, nil
	}
	l, err := in.link(lent.Name)
	if err != nil || l == nil || !bytes.Equal(l.Attrs().HardwareAddr, lent.HWAddr) {
		return nil, err
	}
	return l, nil
}

// save writes the state file, whole or not at all.
func (n *Network) save(lent *lentNIC) error {
	b, err := json.Marshal(lent)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.opts.State), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(n.opts.State+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(n.opts.State+".new", n.opts.State)
}

// load reads the state file; nil says that nothing is lent.
func (n *Network) load() (*lentNIC, error) {
	b, err := podvm.ReadFileMax(n.opts.State, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var lent lentNIC
	if err == nil {
		err = json.Unmarshal(b, &lent)
	}
	if err == nil {
		err = checkName(lent.Name)
	}
	if err != nil {
		return nil, fmt.Errorf("reading what the pod was lent: %w", err)
	}
	return &lent, nil
}
