package server

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"go.uber.org/goleak"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a host with files and an environment of its own.
func machine(t testing.TB, env map[string]string, files map[string]string) podvm.Host {
	t.Helper()
	root := t.TempDir()
	if _, ok := files["/proc/cmdline"]; !ok {
		write(t, filepath.Join(root, "/proc/cmdline"), "quiet\n")
	}
	for path, text := range files {
		write(t, filepath.Join(root, path), text)
	}
	return podvm.Host{Root: root, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// world is a data hub on its socket between an agent and a KBS.
type world struct {
	kbs  *cdhtest.KBS
	aa   *cdhtest.AA
	hub  *Hub
	host podvm.Host
	path string
	conn *rpc.Client
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{kbs: cdhtest.NewKBS(t), host: machine(t, nil, nil), path: filepath.Join(t.TempDir(), "cdh.sock")}
	w.kbs.Set("default/key/1", []byte("secret one"))
	w.aa = cdhtest.NewAA(t, w.kbs).Start(t)
	cfg := Config{Socket: "unix://" + w.path, KBC: KBC{Name: "cc_kbc", URL: w.kbs.URL}, TokenAASocket: "unix://" + w.aa.Path}
	cfg.AA.Socket = cfg.TokenAASocket
	for _, f := range change {
		f(&cfg)
	}
	hub, err := Open(t.Context(), cfg, w.host, cdhtest.Quiet)
	if err != nil {
		t.Fatal(err)
	}
	w.hub = hub
	stop := cdhtest.Serve(t, w.path, hub.Register)
	w.conn = rpc.NewClient(w.path, 10*time.Second)
	t.Cleanup(func() {
		if err := w.conn.Close(); err != nil {
			t.Error(err)
		}
		stop()
		if err := hub.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// call runs f over the hub's socket and returns its status.
func (w *world) call(f func(c *ttrpc.Client) error) *status.Status {
	return status.Convert(w.conn.Do(context.Background(), f))
}

func (w *world) get(uri string) (content []byte, st *status.Status) {
	st = w.call(func(c *ttrpc.Client) error {
		resp, err := datahub.NewGetResourceServiceClient(c).GetResource(context.Background(), &datahub.GetResourceRequest{ResourcePath: uri})
		content = resp.GetResource()
		return err
	})
	return content, st
}

func (w *world) unwrap(in string) (out []byte, st *status.Status) {
	st = w.call(func(c *ttrpc.Client) error {
		resp, err := keyprovider.NewKeyProviderServiceClient(c).UnWrapKey(context.Background(),
			&keyprovider.KeyProviderKeyWrapProtocolInput{KeyProviderKeyWrapProtocolInput: []byte(in)})
		out = resp.GetKeyProviderKeyWrapProtocolOutput()
		return err
	})
	return out, st
}

func (w *world) pull(image, bundle string) (digest string, st *status.Status) {
	st = w.call(func(c *ttrpc.Client) error {
		resp, err := datahub.NewImagePullServiceClient(c).PullImage(context.Background(), &datahub.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
		digest = resp.GetManifestDigest()
		return err
	})
	return digest, st
}

// puller is a fake image puller.
type puller struct {
	mu      sync.Mutex
	pulled  []string
	removed []string
	err     error
	hold    chan struct{} // closed to let Pull go on; nil: at once
	entered chan struct{}
}

const digest = "sha256:0000000000000000000000000000000000000000000000000000000000000000"

func (p *puller) Pull(_ context.Context, image, _ string) (string, error) {
	p.mu.Lock()
	p.pulled = append(p.pulled, image)
	p.mu.Unlock()
	if p.hold != nil {
		p.entered <- struct{}{}
		<-p.hold
	}
	return digest, p.err
}

func (p *puller) DryRun(context.Context, string) (imagepull.Report, error) {
	return imagepull.Report{}, p.err
}

func (p *puller) Remove(_ context.Context, bundle string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removed = append(p.removed, bundle)
	return nil
}

func (p *puller) Close() error { return nil }

func (w *world) usePuller(p *puller) { w.hub.newPuller = func() (Puller, error) { return p, nil } }

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
