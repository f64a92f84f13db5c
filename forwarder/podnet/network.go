package podnet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// DefaultNamespace is where the unit netns@podns puts the pod's namespace, and
// DefaultState where the look of a lent network interface is kept. The directory
// must outlive the process, as it does not if systemd makes it for the unit.
const (
	DefaultNamespace = "/run/netns/podns"
	DefaultState     = "/run/peerpod/podnet.json"
)

// setupTimeout bounds Setup: clouds give a second interface its address late.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/podnetwork/podnode.go at
// fbdde756. closeTimeout bounds taking everything back.
const (
	setupTimeout = 3 * time.Minute
	closeTimeout = 30 * time.Second
)

// Options say where the network is built.
type Options struct {
	// Namespace is the path of the pod's network namespace; "" is
	// DefaultNamespace.
	Namespace string
	// Root is the path of the network namespace of the VM, where its network
	// interfaces are; "" is that of this process.
	Root string
	// HostInterface is the network interface of a dedicated tunnel.
	HostInterface string
	// IMDS are metadata services the pod may ask; empty means none. See
	// SetupIMDS for the danger.
	IMDS []netip.Addr
	// State is the file that keeps how a lent network interface was; "" is
	// DefaultState.
	State string
	// Host says where programs are found, should the kernel lack nf_tables.
	Host podvm.Host
	// Log takes a line per step; nil is slog.Default.
	Log *slog.Logger

	// step is called before each change, with what is about to be done; its
	// error takes the place of the change. Tests kill and fail by it.
	step func(doing string) error
	// noNFT stands for a kernel without nf_tables.
	noNFT bool
}

// Network is a pod network that Setup made. Its methods are not for concurrent
// use.
type Network struct {
	config Config
	opts   Options
	root   *namespace // open in Setup and Close only
	pod    *namespace
}

// Setup makes the pod network of c, or makes right what an earlier process left
// of it, without a gap for the pod where that fits. It waits for the network of
// the VM to come up, three minutes at most. When it fails, nothing of the pod
// network is left.
//
// Errors: ErrConfig, ErrNamespace, ErrForeign, those of ctx and of the kernel.
func Setup(ctx context.Context, c Config, o Options) (*Network, error) {
	if err := c.Validate(); err != nil {
		return nil, podvm.Explain(err, "failed to set up pod network")
	}
	n := newNetwork(c, o)
	if err := n.setup(ctx); err != nil {
		return nil, podvm.Explain(err, "failed to set up pod network")
	}
	return n, nil
}

func newNetwork(c Config, o Options) *Network {
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.State == "" {
		o.State = DefaultState
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Network{config: c, opts: o}
}

func (n *Network) setup(ctx context.Context) error {
	if err := n.open(false); err != nil {
		return err
	}
	defer n.shut()
	limited, cancel := context.WithTimeoutCause(ctx, setupTimeout, fmt.Errorf("the network of the VM is not up after %s", setupTimeout))
	defer cancel()
	start := time.Now()
	if err := n.up(limited); err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		return errors.Join(err, n.down(ctx))
	}
	n.opts.Log.Info("Pod network is up", "interface", n.config.Interface, "dur", time.Since(start))
	return nil
}

// up is the list of steps. Each can be repeated, from any state an earlier run
// may have left.
func (n *Network) up(ctx context.Context) error {
	lent, err := n.recover(ctx)
	if err != nil {
		return err
	}
	u, err := n.underlay(ctx)
	if err != nil {
		return err
	}
	if err := n.untrack(ctx); err != nil {
		return err
	}
	if err := n.tunnel(ctx, u); err != nil {
		return fmt.Errorf("failed to set up tunnel %q: %w", n.config.TunnelType, err)
	}
	if n.config.ExternalNetViaPodVM {
		if err := n.lend(ctx, u, lent); err != nil {
			return fmt.Errorf("lending the pod a network interface: %w", err)
		}
	}
	if len(n.opts.IMDS) > 0 {
		return n.imdsUp(ctx, n.config.addr4())
	}
	return nil
}

// Close takes the network down: the tunnel with its addresses, routes and
// neighbours, the rules, the way to a metadata service; a lent network interface
// goes back to the VM as it was. It can be repeated, and takes 30 seconds at most.
// With a namespace of the pod that is gone, so is what was in it, and the rest is
// taken down. ctx must not be one that ended just now, as that of a signal.
func (n *Network) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	if err := n.open(true); err != nil {
		return err
	}
	defer n.shut()
	return n.down(ctx)
}

// down takes everything back that is ours, whatever fails.
func (n *Network) down(ctx context.Context) error {
	var errs []error
	if len(n.opts.IMDS) > 0 {
		errs = append(errs, n.imdsDown(ctx))
	}
	errs = append(errs, n.giveBack(ctx), n.removeTunnels(ctx, nil), n.track(ctx))
	return errors.Join(errs...)
}

// open connects to both namespaces. With alone, it is no error if that of the pod
// does not exist; n.pod is nil then.
func (n *Network) open(alone bool) (err error) {
	if n.root, err = openNamespace(n.opts.Root); err != nil {
		return err
	}
	n.pod, err = openNamespace(n.opts.Namespace)
	if alone && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		n.root.close()
		return err
	}
	if n.pod.is(n.root) {
		n.shut()
		return fmt.Errorf("%w: %s is the one of the VM", ErrNamespace, n.opts.Namespace)
	}
	return nil
}

func (n *Network) shut() {
	n.root.close()
	if n.pod != nil {
		n.pod.close()
	}
}

// do makes one change, unless ctx has ended.
func (n *Network) do(ctx context.Context, doing string, change func() error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
	}
	if n.opts.step != nil {
		if err := n.opts.step(doing); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
	if err := change(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	n.opts.Log.Debug("Changed the network", "step", doing)
	return nil
}
