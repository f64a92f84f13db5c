package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// pod is the guest's half: three real sealpod processes.
type pod struct {
	*guest
	hub   *rpc.Client
	procs []*process
	ready map[string]time.Duration // from exec to serving, by applet
}

// daemon is how one process of the pod is started.
type daemon struct {
	name  string
	args  []string
	probe func() bool // tells whether it serves
}

// daemons lists them in the order in which they need each other.
func (g *guest) daemons() []daemon {
	file := func(name string) string { return filepath.Join(g.dir, name) }
	agent := []string{"-c", file("aa.toml"), "-a", "unix://" + g.aaSock}
	if g.machine != nil {
		agent = append(agent, "-t", g.initData)
	}
	return []daemon{
		{"attestation-agent", agent, exists(g.aaSock)},
		{"confidential-data-hub", []string{"-c", file("cdh.toml")}, exists(g.cdhSock)},
		{
			"api-server-rest",
			[]string{"-b", g.rest, "-f", "all", "-a", "unix://" + g.aaSock, "-c", "unix://" + g.cdhSock},
			listening(g.rest),
		},
	}
}

// env is all of the daemons' environment: what the user has set, for a machine
// of tee-sim say, must not reach them.
func (g *guest) env() []string {
	tee := Sample
	if g.machine != nil {
		tee = g.machine.TEE()
	}
	env := []string{
		"SEALPOD_LOG_FORMAT=text", "RUST_LOG=info", "SEALPOD_ATTESTERS=" + tee,
		"OCICRYPT_KEYPROVIDER_CONFIG=" + filepath.Join(g.dir, "ocicrypt_config.json"),
	}
	if g.machine != nil {
		env = append(env, g.machine.Env()...)
	}
	return env
}

// startPod starts the daemons in g's directory, each once its predecessor
// serves. What was started before a failure is stopped by stop.
func startPod(ctx context.Context, sealpod string, g *guest) (*pod, error) {
	p := &pod{guest: g, hub: rpc.NewClient(g.cdhSock, 5*time.Second), ready: map[string]time.Duration{}}
	for _, d := range g.daemons() {
		began := time.Now()
		proc, err := start(sealpod, g.dir, d.name, g.env(), d.args...)
		if err != nil {
			return p, err
		}
		p.procs = append(p.procs, proc)
		if err := proc.ready(ctx, d.probe); err != nil {
			return p, err
		}
		p.ready[d.name] = time.Since(began)
	}
	return p, nil
}

// stop ends the daemons, the last started first, unmounts what a pull has
// mounted whose answer nobody waited for, and stops the machine.
func (p *pod) stop() error {
	errs := []error{p.hub.Close()}
	for i := len(p.procs) - 1; i >= 0; i-- {
		errs = append(errs, p.procs[i].stop())
	}
	bundles, err := os.ReadDir(p.bundles)
	errs = append(errs, err)
	for _, b := range bundles {
		errs = append(errs, unmount(filepath.Join(p.bundles, b.Name())))
	}
	return errors.Join(append(errs, p.close())...)
}

// pull asks the data hub for image and returns the bundle and the digest.
func (p *pod) pull(ctx context.Context, image, container string) (bundle, digest string, err error) {
	bundle = filepath.Join(p.bundles, container)
	if err := os.MkdirAll(bundle, 0o700); err != nil {
		return "", "", fmt.Errorf("creating the bundle: %w", err)
	}
	err = p.hub.Do(ctx, func(c *ttrpc.Client) error {
		r, err := datahub.NewImagePullServiceClient(c).PullImage(ctx, &datahub.ImagePullRequest{ImageUrl: image, BundlePath: bundle})
		digest = r.GetManifestDigest()
		return err
	})
	return bundle, digest, err
}

// fetchSecret gets the secret as a container does: plain HTTP on loopback.
func (p *pod) fetchSecret(ctx context.Context) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.rest+"/cdh/resource/"+secretPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := podvm.ReadMax(resp.Body, 1<<20)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: %s", resp.Status, podvm.Printable(string(body), 500))
	}
	return body, nil
}

func exists(path string) func() bool {
	return func() bool { _, err := os.Lstat(path); return err == nil }
}

func listening(addr string) func() bool {
	return func() bool {
		c, err := net.DialTimeout("tcp", addr, time.Second) //nolint:noctx // bounded
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
}

// freeAddr returns a loopback address nothing listens on right now.
func freeAddr(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("finding a free port: %w", err)
	}
	return l.Addr().String(), l.Close()
}
