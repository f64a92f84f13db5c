package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/relyingparty"
)

// callersDeadline is how long kata-agent and api-server-rest wait for an answer.
const callersDeadline = 50 * time.Second

// TestNoRequestIsLostWhileDaemonsAreKilled kills the attestation agent, the data
// hub and the relying party at random moments and starts them again as a service
// manager would, while containers and kata-agent ask for secrets and pull.
// Every request must be answered, rightly, within its caller's deadline.
// SEALPOD_CHAOS is how long it goes on, 8s by default.
func TestNoRequestIsLostWhileDaemonsAreKilled(t *testing.T) {
	length := 8 * time.Second
	if s := os.Getenv("SEALPOD_CHAOS"); s != "" {
		var err error
		if length, err = time.ParseDuration(s); err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t)
	image, weights := signedImage(t, w)
	sealed := w.sealSecret(t, secretPath)
	w.moveRelyingPartyOut(t)

	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	keepers := w.keepers(t)
	load := newLoad(t, ctx)
	for range 4 {
		load.run("secret over HTTP", func(ctx context.Context) error {
			got, err := w.fetchSecret(ctx)
			return w.check(got, err)
		})
	}
	for range 2 {
		hub := rpc.NewClient(w.cdhSock, callersDeadline)
		t.Cleanup(func() { _ = hub.Close() })
		load.run("GetResource", func(ctx context.Context) error {
			var got []byte
			err := hub.Do(ctx, func(c *ttrpc.Client) error {
				r, err := datahub.NewGetResourceServiceClient(c).GetResource(ctx, &datahub.GetResourceRequest{ResourcePath: "kbs:///" + secretPath})
				got = r.GetResource()
				return err
			})
			return w.check(got, err)
		})
	}
	hub := rpc.NewClient(w.cdhSock, callersDeadline)
	t.Cleanup(func() { _ = hub.Close() })
	load.run("UnsealSecret", func(ctx context.Context) error {
		var got []byte
		err := hub.Do(ctx, func(c *ttrpc.Client) error {
			r, err := datahub.NewSealedSecretServiceClient(c).UnsealSecret(ctx, &datahub.UnsealSecretInput{Secret: []byte(sealed)})
			got = r.GetPlaintext()
			return err
		})
		return w.check(got, err)
	})
	fresh := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	load.run("token over HTTP", func(ctx context.Context) error {
		return w.getBy(ctx, fresh, "/aa/token?token_type=kbs")
	})
	load.run("evidence over HTTP", func(ctx context.Context) error {
		return w.getBy(ctx, fresh, "/aa/evidence?runtime_data=nonce")
	})
	if os.Getuid() == 0 { // others have no mount to take off between pulls
		n := 0
		load.run("pull", func(ctx context.Context) error {
			n++
			bundle, _, err := w.pull(ctx, image, fmt.Sprint("chaos", n))
			if err != nil {
				return err
			}
			if _, err := checkRootfs(bundle, weights); err != nil {
				return err
			}
			return unmount(bundle)
		})
	}
	kills := map[string]int{}
	for n := rand.IntN(len(keepers)); pause(ctx, 50*time.Millisecond, 900*time.Millisecond); n++ {
		k := keepers[n%len(keepers)] // in turns, so that none is left out by chance
		kills[k.name]++
		k.kill()
	}
	load.wait()
	t.Logf("killed: %v", kills)
	for _, k := range keepers {
		if length >= 8*time.Second && kills[k.name] == 0 {
			t.Errorf("%s was never killed", k.name)
		}
	}
}

func signedImage(t *testing.T, w *world) (ref string, weights []byte) {
	t.Helper()
	source, weights, err := w.buildImage(t.Context(), "chaos")
	if err != nil {
		t.Fatal(err)
	}
	s, err := w.encrypt(t.Context(), source, "chaos", kekPath, false)
	if err == nil {
		err = w.sign(t.Context(), s.ref)
	}
	if err != nil {
		t.Fatal(err)
	}
	return s.ref, weights
}

// check compares what a caller got with the owner's secret.
func (w *world) check(got []byte, err error) error {
	if err == nil && string(got) != w.secret {
		return fmt.Errorf("a secret of %d bytes that is not the owner's", len(got))
	}
	return err
}

// getBy asks api-server-rest and wants some answer with status 200.
func (w *world) getBy(ctx context.Context, by *http.Client, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+w.rest+path, nil)
	if err != nil {
		return err
	}
	resp, err := by.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || len(body) == 0) {
		err = fmt.Errorf("%s: %s", resp.Status, podvm.Printable(string(body), 500))
	}
	return err
}

// load is callers that go on until the context ends.
type load struct {
	t     *testing.T
	ctx   context.Context
	group errgroup.Group
	mu    sync.Mutex
	calls map[string]int
	worst map[string]time.Duration
}

func newLoad(t *testing.T, ctx context.Context) *load {
	return &load{t: t, ctx: ctx, calls: map[string]int{}, worst: map[string]time.Duration{}}
}

// run makes one caller that calls again and again.
func (l *load) run(name string, call func(context.Context) error) {
	l.group.Go(func() error {
		for l.ctx.Err() == nil {
			ctx, cancel := context.WithTimeout(context.Background(), callersDeadline)
			began := time.Now()
			err := call(ctx)
			cancel()
			if err != nil {
				l.t.Errorf("%s, after %v: %v", name, time.Since(began), err)
			}
			l.mu.Lock()
			l.calls[name]++
			l.worst[name] = max(l.worst[name], time.Since(began))
			l.mu.Unlock()
		}
		return nil
	})
}

func (l *load) wait() {
	_ = l.group.Wait()
	for name, n := range l.calls {
		l.t.Logf("%-20s %6d calls, the longest took %v", name, n, l.worst[name].Round(time.Millisecond))
		if n < 3 {
			l.t.Errorf("%s: only %d calls", name, n)
		}
	}
}

// pause waits a random time and tells whether ctx still lasts.
func pause(ctx context.Context, least, most time.Duration) bool {
	timer := time.NewTimer(least + rand.N(most-least))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// keeper is what a service manager is for one process.
type keeper struct {
	t     testing.TB
	name  string
	start func() (*process, error)
	mu    sync.Mutex
	now   *process
}

// kill ends the process without warning. It is started again a little later.
func (k *keeper) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := k.now
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		k.t.Errorf("killing %s: %v", k.name, err)
	}
	<-p.done
	if ws, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && !ws.Signaled() {
		k.t.Errorf("%s had ended by itself (%v); its log ends with:\n%s", k.name, p.err, p.tail())
	}
	pause(context.Background(), 10*time.Millisecond, 300*time.Millisecond)
	next, err := k.start()
	if err != nil {
		k.t.Errorf("starting %s again: %v", k.name, err)
		return
	}
	k.now = next
}

// keepers of the pod's agent and data hub, and of the relying party.
func (w *world) keepers(t *testing.T) []*keeper {
	var list []*keeper
	for i, d := range w.daemons()[:2] {
		list = append(list, &keeper{t: t, name: d.name, now: w.procs[i], start: func() (*process, error) {
			p, err := start(sealpod(t), w.guest.dir, d.name, w.env(), d.args...)
			if err == nil {
				w.procs[i] = p
			}
			return p, err
		}})
	}
	return append(list, w.outside)
}

// Environment of the test binary that makes it a relying party.
const (
	envStore  = "SEALPOD_TEST_RELYING_PARTY_STORE"
	envListen = "SEALPOD_TEST_RELYING_PARTY_LISTEN"
)

// moveRelyingPartyOut replaces the relying party in this process by one in a
// process of its own, at the same address and on the same store.
func (w *world) moveRelyingPartyOut(t testing.TB) {
	t.Helper()
	addr := w.rpHTTP.addr
	if err := errors.Join(w.rpHTTP.stop(), w.rp.Close()); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, name: "relying-party"}
	k.start = func() (*process, error) {
		env := []string{envStore + "=" + filepath.Join(w.dir, "relying-party"), envListen + "=" + addr}
		return start(self, w.dir, k.name, env) // the name is an argument nobody reads
	}
	if k.now, err = k.start(); err != nil {
		t.Fatal(err)
	}
	if err := k.now.ready(t.Context(), listening(addr)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = k.now.cmd.Process.Kill()
		<-k.now.done
	})
	w.rpHTTP, w.outside = nil, k
}

// beRelyingParty is the test binary as a relying party.
func beRelyingParty() error {
	rp, err := relyingparty.Open(relyingparty.Config{StoreDir: os.Getenv(envStore)})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", os.Getenv(envListen))
	if err != nil {
		return err
	}
	return rp.Serve(context.Background(), l)
}
