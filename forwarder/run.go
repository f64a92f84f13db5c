package forwarder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/sealpod/sealpod/forwarder/intercept"
	"github.com/sealpod/sealpod/forwarder/podnet"
	"github.com/sealpod/sealpod/forwarder/relay"
	"github.com/sealpod/sealpod/forwarder/volume"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/notify"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// What upstream's flags default to. Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/forwarder/forwarder.go at fbdde756.
const (
	DefaultListen      = "0.0.0.0:15150"
	DefaultAgentSocket = "/run/kata-containers/agent.sock"
	DefaultNamespace   = "/run/netns/podns"
)

// hubFile is the data hub's configuration, which says what cloud volumes the pod's
// owner wants.
const hubFile = "/run/peerpod/cdh.toml"

const (
	// hubTime is how long the data hub may take to take a connection.
	hubTime = 20 * time.Second
	// teardownTime bounds what is taken away at the end.
	teardownTime = 20 * time.Second
)

// Config is what the command line says.
type Config struct {
	// File is the path of apf.json, Listen a TCP address.
	File, Listen string
	// AgentSocket is kata-agent's; one that starts with @ is abstract.
	AgentSocket string
	// Namespace is the path of the pod's network namespace, HostInterface the
	// network interface for a tunnel that has one of its own.
	Namespace, HostInterface string
	TLS                      TLS
	// IMDS are metadata services of clouds that the pod may ask, see
	// podnet.ParseIMDS.
	IMDS []netip.Addr
	// Metrics is where metrics are, see metrics.Listen.
	Metrics string
	Host    podvm.Host
	Log     *slog.Logger
}

// runner is a forwarder at work.
type runner struct {
	cfg      Config
	file     File
	count    *counters
	server   *server
	listener net.Listener
	started  time.Time
}

// Run is the forwarder: it sets up the pod's network, serves until ctx ends, and
// takes the network away again. Whatever of the network an earlier one that was
// killed left behind, it takes over.
func Run(ctx context.Context, cfg Config) (err error) {
	r := &runner{cfg: cfg, count: newCounters(), started: time.Now()}
	var unknown []string
	if r.file, unknown, err = Load(cfg.File); err != nil {
		return err
	}
	for _, key := range unknown {
		cfg.Log.Warn("The configuration has a key that nothing reads", "file", cfg.File, "key", key)
	}
	if allowed, err := r.volumes(); err != nil {
		return err
	} else if allowed != nil {
		cfg.Log.Info("Cloud volumes are limited", "file", hubFile, "keys", len(allowed.Keys), "plain", allowed.Plain)
	}
	network, err := podnet.Setup(ctx, *r.file.PodNetwork, podnet.Options{
		Namespace: cfg.Namespace, HostInterface: cfg.HostInterface, IMDS: cfg.IMDS, Host: cfg.Host, Log: cfg.Log,
	})
	if err != nil && ctx.Err() != nil {
		cfg.Log.Info("Stopped before the pod's network was up", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	cfg.Log.Info("The pod's network is up", "dur", time.Since(r.started))
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), teardownTime)
		defer cancel()
		if cerr := network.Close(ctx); cerr != nil {
			err = errors.Join(err, fmt.Errorf("taking the pod's network away: %w", cerr))
		}
	}()
	secured, err := cfg.TLS.config(r.file, cfg.Log)
	r.file.ServerKey.Wipe() // what is needed of it is in secured
	if err != nil {
		return fmt.Errorf("setting up TLS: %w", err)
	}
	if r.listener, err = listen(ctx, cfg.Listen); err != nil {
		return err
	}
	return r.serve(ctx, newServer(secured, defaultLimits, cfg.Log, r.count))
}

// serve runs s and what belongs to it until ctx ends.
func (r *runner) serve(ctx context.Context, s *server) error {
	cfg := r.cfg
	hub := rpc.NewClient(podvm.CDHSocket, hubTime)
	defer hub.Close() //nolint:errcheck // nothing is under way any more
	changes := intercept.New(intercept.Config{
		Namespace: cfg.Namespace, Host: cfg.Host, Log: cfg.Log,
		Volumes: volume.New(volume.Config{Host: cfg.Host, Hub: hub, Rules: r.volumes, Log: cfg.Log}),
	})
	spliced := relay.New(relay.Config{Dial: agentDialer(cfg.AgentSocket), Methods: changes.Methods(), Log: cfg.Log, Metrics: relay.NewMetrics(r.count.set)})
	s.splice, s.running = spliced.Serve, spliced.Running
	r.server = s
	r.count.show(s)
	watched := metrics.Listen(ctx, cfg.Metrics, Socket, r.count.set, r.status, cfg.Log)

	ctx, stop := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait()
	defer stop()
	beside.Go(func() { watched.Serve(ctx) })
	beside.Go(func() {
		notify.Serving(ctx, cfg.Log, func(ctx context.Context) error { return s.alive(ctx, r.listener) })
	})
	debug.FreeOSMemory() // what it took to get here is not needed again
	cfg.Log.Info("Ready", "address", r.listener.Addr(), "tls", s.tls != nil, "dur", time.Since(r.started))
	return s.serve(ctx, r.listener)
}

// volumes returns what cloud volumes the pod's owner allows.
func (r *runner) volumes() (*volume.Rules, error) { return volume.LoadRules(r.cfg.Host.Path(hubFile)) }

func (r *runner) status() any {
	strangers, clients := r.server.peers.counts()
	return Status{
		Version: podvm.Version(), Started: r.started, Listen: r.listener.Addr().String(), TLS: r.server.tls != nil,
		PodNamespace: podvm.Printable(r.file.PodNamespace, 253), PodName: podvm.Printable(r.file.PodName, 253),
		Clients: clients, Strangers: strangers,
	}
}

// agentDialer returns what opens connections to the agent's socket.
func agentDialer(path string) func(context.Context) (net.Conn, error) {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path) // a leading @ is net's sign for abstract, too
	}
}

// Banner is the three lines upstream's program prints first at each start.
func Banner(goVersion string) string {
	version := podvm.Version()
	commit := version
	if _, hash, ok := strings.Cut(version, "-g"); ok { // as git describe has it
		commit = hash
	}
	return fmt.Sprintf("agent-protocol-forwarder version %s\n  commit: %s\n  go: %s\n", version, commit, goVersion)
}
