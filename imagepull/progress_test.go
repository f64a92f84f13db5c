package imagepull

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
	"github.com/sealpod/sealpod/podvm"
)

// watcher remembers the pulls it was told of.
type watcher struct {
	mu    sync.Mutex
	began []*Progress
	ended []string // results
	last  Status
}

func (w *watcher) PullBegins(p *Progress) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began = append(w.began, p)
}

func (w *watcher) PullEnds(p *Progress, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = append(w.ended, Result(err))
	w.last = p.Status()
}

func (m *machine) watch() *watcher {
	w := &watcher{}
	m.deps.Observer = w
	return w
}

// The registry answers the second layer only when the first was seen to be
// there, so what is seen is how it is in the middle of a pull.
func TestProgressIsSeenWhileItIsMade(t *testing.T) {
	m := newMachine(t)
	w := m.watch()
	var log bytes.Buffer
	m.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
	m.deps.Config.ConcurrentLayers = 1
	img := twoLayers(t)
	digest := m.Push(t, "a", "1", img)
	middle := make(chan Status, 1)
	second := img.Layers[1]
	m.Hook(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, registrytest.Digest(second.Blob)) {
			select {
			case middle <- w.began[0].Status():
			default:
			}
		}
		return false
	})
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	total := int64(len(img.Layers[0].Blob) + len(second.Blob))
	got := <-middle
	if got.Phase != PhaseLayers || got.TotalBytes != total || got.FetchedBytes != int64(len(img.Layers[0].Blob)) ||
		got.Layers != 2 || got.LayersDone != 1 || got.LayersCached != 0 || got.Digest != digest ||
		got.From != m.ref("a:1") || got.Percent() != int(100*got.FetchedBytes/total) || got.Elapsed <= 0 {
		t.Errorf("in the middle: %+v", got)
	}
	end := w.last
	if end.Phase != PhaseMount || end.FetchedBytes != total || end.LayersDone != 2 || end.Percent() != 100 || w.ended[0] != "ok" {
		t.Errorf("at the end: %v %+v", w.ended, end)
	}
	sum := 0.0
	for _, phase := range Phases() {
		d, ok := end.Seconds[phase]
		if !ok {
			t.Errorf("no time for %s", phase)
		}
		sum += d
	}
	if math.Abs(end.Elapsed-sum) > 1e-6 {
		t.Errorf("phases make up %gs of %gs", sum, end.Elapsed)
	}
	if again := w.began[0].Status(); again.Elapsed != end.Elapsed {
		t.Error("the time goes on after the end")
	}
	for _, part := range []string{
		`msg="Image pulled" image=` + m.ref("a:1"), "digest=" + digest, "layers=2 cached=0", fmt.Sprintf(" bytes=%d ", total),
		"phases.settings=", "phases.resolve=", "phases.policy=", "phases.keys=", "phases.layers=", "phases.mount=", " dur=",
	} {
		if !strings.Contains(log.String(), part) {
			t.Errorf("the closing line lacks %q in\n%s", part, log.String())
		}
	}
}

func TestProgressOfCachedAndRepeatedLayers(t *testing.T) {
	m := newMachine(t)
	w := m.watch()
	one := twoLayers(t).Layers[0]
	m.Push(t, "a", "1", registrytest.NewImage(one, one))
	p := m.puller(t)
	for i, want := range []Status{{FetchedBytes: int64(len(one.Blob)), TotalBytes: int64(len(one.Blob)), LayersCached: 1}, {LayersCached: 2}} {
		if _, err := p.Pull(deadline(t), m.ref("a:1"), m.bundle(fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
		got := w.last
		if got.FetchedBytes != want.FetchedBytes || got.TotalBytes != want.TotalBytes || got.LayersCached != want.LayersCached ||
			got.Layers != 2 || got.LayersDone != 2 || got.Percent() != 100 {
			t.Errorf("pull %d: %+v", i, got)
		}
	}
}

// What a place that failed had is not counted for the next.
func TestProgressBeginsAnewAtTheNextPlace(t *testing.T) {
	m := newMachine(t)
	w := m.watch()
	bad := registrytest.New(t)
	img := twoLayers(t)
	m.Push(t, "a", "1", img)
	other := twoLayers(t)
	other.Layers = append(other.Layers, registrytest.Files(t, map[string]string{"more": "x"}))
	other = registrytest.NewImage(other.Layers...)
	bad.Push(t, "a", "1", other)
	bad.Hook(func(rw http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, registrytest.Digest(other.Layers[2].Blob)) {
			rw.WriteHeader(http.StatusNotFound)
			return true
		}
		return false
	})
	m.deps.Config.Registries.Registry[0].Mirror = []registry.Mirror{{Location: bad.Host, Insecure: true}}
	if _, err := m.puller(t).Pull(deadline(t), m.ref("a:1"), m.bundle("c")); err != nil {
		t.Fatal(err)
	}
	if got := w.last; got.From != m.ref("a:1") || got.Layers != 2 || got.LayersDone != 2 || got.FetchedBytes != got.TotalBytes {
		t.Errorf("%+v", got)
	}
}

func TestResultsOfPullsThatFail(t *testing.T) {
	m := newMachine(t)
	w := m.watch()
	var log bytes.Buffer
	m.deps.Log = slog.New(slog.NewTextHandler(&log, nil))
	p := m.puller(t)
	if _, err := p.Pull(deadline(t), m.ref("none:1"), m.bundle("c")); err == nil {
		t.Fatal("pulled what is not there")
	}
	if _, err := p.Pull(deadline(t), "UPPER:::", m.bundle("c")); err == nil {
		t.Fatal("pulled what is no name")
	}
	if fmt.Sprint(w.ended) != "[not_found config]" || w.last.Phase != PhaseSettings {
		t.Errorf("%v, %+v", w.ended, w.last)
	}
	if !strings.Contains(log.String(), `msg="Image not pulled"`) || !strings.Contains(log.String(), "result=not_found phase=resolve phases.settings=") {
		t.Error(log.String())
	}
}

func TestResultIsOneOfFewWords(t *testing.T) {
	tests := map[string]error{
		"ok":           nil,
		"failed":       errors.New("x"),
		"denied":       policy.ErrRejected,
		"unauthorized": attempts{{"a", registry.ErrUnauthorized}},
		"decrypt":      podvm.Explain(fmt.Errorf("x: %w", layer.ErrDecrypt), "y"),
		"no_space":     unix.ENOSPC,
		"timeout":      context.DeadlineExceeded,
		"cancelled":    errors.Join(registry.ErrUnavailable, context.Canceled),
	}
	known := map[string]bool{}
	for _, r := range Results() {
		known[r] = true
	}
	if len(known) != len(Results()) || len(known) > 20 {
		t.Errorf("results %q", Results())
	}
	for want, err := range tests {
		if got := Result(err); got != want || !known[got] {
			t.Errorf("Result(%v) = %q, want %q", err, got, want)
		}
	}
}
