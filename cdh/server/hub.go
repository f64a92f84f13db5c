package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/mount"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/cdh/secret"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/notify"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Puller pulls images; *imagepull.Puller is the one in use.
type Puller interface {
	// Pull fills bundleDir, or leaves nothing in it.
	Pull(ctx context.Context, image, bundleDir string) (digest string, err error)
	// DryRun tells what Pull would meet.
	DryRun(ctx context.Context, image string) (imagepull.Report, error)
	// Remove takes back what Pull put into bundleDir.
	Remove(ctx context.Context, bundleDir string) error
	Close() error
}

// Hub is the data hub behind its socket. It is safe for concurrent use.
type Hub struct {
	cfg       Config
	host      podvm.Host
	log       *slog.Logger
	resources resource.Source
	kms       *kms.Client
	secrets   *secret.Unsealer
	mounts    *mount.Mounter
	aaPath    string
	aa        *rpc.Client // for measurements
	aaSeen    atomic.Bool // the agent's socket was there once
	started   time.Time
	count     *counters
	pulls     pulls
	// newPuller is called at the first pull, because the store may be mounted
	// after start-up.
	newPuller func() (Puller, error)

	mu     sync.Mutex
	puller Puller
}

// Open builds the hub and, unless cfg.WriteNothing, writes its files:
// credentials, and where ocicrypt users find the key provider. With cc_kbc and credentials it waits for the
// attestation agent; otherwise start order does not matter.
func Open(ctx context.Context, cfg Config, host podvm.Host, log *slog.Logger) (*Hub, error) {
	if log == nil {
		log = slog.Default()
	}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	aaPath, _ := rpc.SocketPath(cfg.AA.Socket) // validated
	tokenPath, _ := rpc.SocketPath(cfg.TokenAASocket)
	resources, err := resource.New(resource.Config{
		KBC: cfg.KBC.Name, URL: cfg.KBC.URL, CertPEM: []byte(cfg.KBC.Cert),
		AASocket: tokenPath, ExtraFiles: cfg.ExtraFiles, Host: host, Log: log,
	})
	if err != nil {
		return nil, err
	}
	h := &Hub{
		cfg: cfg, host: host, log: log, resources: resources,
		aaPath: aaPath, aa: rpc.NewClient(aaPath, measureTimeout), started: time.Now(),
	}
	h.kms = kms.New(kms.Config{Host: host, Log: log})
	h.secrets = secret.New(secret.Config{
		Resources: resources, KMS: h.kms, Host: host, SkipVerification: cfg.SkipSealedSecretVerification, Log: log,
	})
	if h.mounts, err = mount.New(mount.Config{Keys: h, Host: host, Log: log}); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	h.count = newCounters(h)
	h.newPuller = h.imagePuller
	h.agentThere()
	if cfg.WriteNothing {
		return h, nil
	}
	start := time.Now()
	if err := placeCredentials(ctx, host, resources, cfg.Credentials); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	if n := len(cfg.Credentials); n > 0 {
		log.Info("Credentials in place", "count", n, "dur", time.Since(start))
	}
	if err := h.writeKeyProviderConfig(); err != nil {
		// Layers are unwrapped in process; only other programs miss the file.
		log.Warn("No key provider file for ocicrypt", "err", err)
	}
	return h, nil
}

// Close ends what the hub has open. No call may be running.
func (h *Hub) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pulls.close()
	var err error
	if h.puller != nil {
		err = h.puller.Close()
		h.puller = nil
	}
	h.kms.Close()
	return errors.Join(err, h.aa.Close(), h.resources.Close())
}

// Register adds the hub's services to srv.
func (h *Hub) Register(srv *ttrpc.Server) {
	datahub.RegisterGetResourceServiceService(srv, resourceService{h})
	datahub.RegisterImagePullServiceService(srv, pullService{h})
	datahub.RegisterSealedSecretServiceService(srv, secretService{h})
	datahub.RegisterSecureMountServiceService(srv, mountService{h})
	keyprovider.RegisterKeyProviderServiceService(srv, keyService{h, textUnwrapParse})
}

// Run is the daemon: it takes a stale socket away, opens the hub, listens, and
// serves until ctx ends. The socket appears only when everything is ready,
// because its appearance is what callers wait for.
func Run(ctx context.Context, cfg Config, host podvm.Host, log *slog.Logger) (err error) {
	path, err := rpc.SocketPath(cfg.Socket)
	if err != nil {
		return err
	}
	if err := rpc.RemoveStale(ctx, path); err != nil {
		return err
	}
	h, err := Open(ctx, cfg, host, log)
	if err != nil && ctx.Err() != nil {
		return nil // asked to stop while waiting for the agent or the KBS
	}
	if err != nil {
		// The text before the reason is upstream's.
		return fmt.Errorf("init Hub failed: %w", err)
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	port, err := listenGRPC(ctx, cfg.GRPC, log)
	if err != nil {
		return err
	}
	l, err := rpc.Listen(ctx, path)
	if err != nil {
		return errors.Join(err, port.Close())
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return port.serve(gctx, h, log) })
	watched := metrics.Listen(ctx, cfg.Metrics.Listen, path, h.count.set, h.status, log)
	g.Go(func() error { watched.Serve(gctx); return nil })
	g.Go(func() error { return rpc.Serve(gctx, l, log, h.Register) })
	g.Go(func() error {
		notify.Serving(gctx, log, func(ctx context.Context) error { return rpc.Answers(ctx, path) })
		return nil
	})
	log.Info("Ready", "socket", path, "kbc", cfg.KBC.Name)
	return g.Wait()
}

func (h *Hub) imagePuller() (Puller, error) {
	return imagepull.New(imagepull.Deps{
		Config: h.cfg.Image, Resources: h.resources, KeyUnwrapper: h, Observer: h.observer(), Log: h.log, Host: h.host,
	})
}

// client returns the puller, made at the first call; a failure is tried again
// at the next.
func (h *Hub) client() (Puller, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.puller == nil {
		p, err := h.newPuller()
		if err != nil {
			return nil, err
		}
		h.puller = p
	}
	return h.puller, nil
}

// writeKeyProviderConfig tells other programs of the guest that use ocicrypt
// where the key provider is, unless the environment already does. The variable
// itself is not set: nothing in this process reads it.
func (h *Hub) writeKeyProviderConfig() error {
	if h.host.Getenv("OCICRYPT_KEYPROVIDER_CONFIG") != "" {
		return nil
	}
	b, err := json.Marshal(map[string]any{
		"key-providers": map[string]any{"attestation-agent": map[string]any{"ttrpc": h.cfg.Socket}},
	})
	if err != nil {
		return err
	}
	dir := h.host.Path(podvm.CDHRunDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ocicrypt_config.json"), b, 0o644)
}
