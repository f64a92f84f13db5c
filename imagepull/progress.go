package imagepull

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/imagepull/store"
	"github.com/sealpod/sealpod/podvm"
)

// Phase is a part of a pull.
type Phase string

// The phases in their order. All but the first are gone through again at each
// place that is tried.
const (
	PhaseSettings Phase = "settings" // the store is opened; policy, credentials and rules are fetched
	PhaseResolve  Phase = "resolve"  // manifest and configuration
	PhasePolicy   Phase = "policy"   // signatures
	PhaseKeys     Phase = "keys"     // of encrypted layers
	PhaseLayers   Phase = "layers"   // fetched and unpacked
	PhaseMount    Phase = "mount"    // rootfs and config.json
)

// Phases lists all phases in their order.
func Phases() []Phase {
	return []Phase{PhaseSettings, PhaseResolve, PhasePolicy, PhaseKeys, PhaseLayers, PhaseMount}
}

// Observer is told of every pull of a Puller. Its methods are called by the
// goroutine of the pull, and delay it.
type Observer interface {
	// PullBegins is told of a pull whose progress can be read from now on.
	PullBegins(*Progress)
	// PullEnds is told of its end; err is what Pull returns. The progress does
	// not change any more.
	PullEnds(p *Progress, err error)
}

// Progress follows one pull. It is safe for concurrent use.
type Progress struct {
	image string
	start time.Time
	bytes atomic.Int64 // counted where they are read, without the lock

	mu      sync.Mutex
	now     Status // without what Status computes
	since   time.Time
	elapsed time.Duration      // at the end
	planned map[store.ID]int64 // bytes of layers to be fetched, not begun with
}

// Status is how far a pull is. All of it is safe to show.
type Status struct {
	Image   string    `json:"image"`          // as asked for
	From    string    `json:"from,omitempty"` // the place it comes from
	Digest  string    `json:"digest,omitempty"`
	Started time.Time `json:"started"`
	Phase   Phase     `json:"phase,omitempty"` // the last one, at the end
	// Seconds is how long each phase took so far, at all places together, and
	// Elapsed the whole.
	Seconds map[Phase]float64 `json:"phaseSeconds"`
	Elapsed float64           `json:"elapsedSeconds"`
	// FetchedBytes of TotalBytes of layers, as they are in the registry, that
	// were not in the store.
	FetchedBytes int64 `json:"fetchedBytes"`
	TotalBytes   int64 `json:"totalBytes"`
	Layers       int   `json:"layers"`
	LayersDone   int   `json:"layersDone"` // cached ones included
	LayersCached int   `json:"layersCached"`
}

func newProgress(image string) *Progress {
	now := time.Now()
	return &Progress{
		image: image, start: now, since: now,
		now: Status{Image: podvm.Printable(image, 512), Started: now, Phase: PhaseSettings, Seconds: map[Phase]float64{}},
	}
}

// Status returns how far the pull is.
func (p *Progress) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.now
	s.Seconds = make(map[Phase]float64, len(p.now.Seconds)+1)
	for phase, d := range p.now.Seconds {
		s.Seconds[phase] = d
	}
	s.FetchedBytes = p.bytes.Load()
	if s.Elapsed = p.elapsed.Seconds(); p.elapsed == 0 {
		s.Seconds[s.Phase] += time.Since(p.since).Seconds()
		s.Elapsed = time.Since(p.start).Seconds()
	}
	return s
}

// Percent is how much of the bytes to be fetched has been, from 0 to 100.
func (s Status) Percent() int {
	switch {
	case s.Phase == PhaseMount || s.Phase == PhaseLayers && s.TotalBytes == 0:
		return 100
	case s.TotalBytes == 0:
		return 0
	}
	return int(min(float64(s.FetchedBytes)/float64(s.TotalBytes), 1) * 100)
}

// enter ends the phase there was and begins the next.
func (p *Progress) enter(phase Phase) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave()
	p.now.Phase = phase
}

func (p *Progress) leave() {
	now := time.Now()
	p.now.Seconds[p.now.Phase] += now.Sub(p.since).Seconds()
	p.since = now
}

// at begins with a place.
func (p *Progress) at(place string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.From, p.now.Digest = place, ""
	p.now.TotalBytes, p.now.Layers, p.now.LayersDone, p.now.LayersCached = 0, 0, 0, 0
	p.bytes.Store(0)
}

// plan says what there is to be had.
func (p *Progress) plan(st *store.Store, digest string, layers pullLayers) {
	planned := map[store.ID]int64{}
	var total int64
	for _, l := range layers {
		if _, twice := planned[l.id]; !twice && !st.Has(l.id) {
			planned[l.id] = l.spec.Size
			total = add(total, float64(l.spec.Size))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.planned = planned
	p.now.Digest, p.now.TotalBytes, p.now.Layers = digest, total, len(layers)
}

// layerDone counts a layer. One that another pull fetched meanwhile is not
// waited for any more.
func (p *Progress) layerDone(id store.ID, cached bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now.LayersDone++
	if cached {
		p.now.LayersCached++
		p.now.TotalBytes -= p.planned[id]
	}
	delete(p.planned, id)
}

// counted is the blob of a layer, whose bytes are counted as they are read.
func (p *Progress) counted(id store.ID, blob io.Reader) io.Reader {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.planned, id)
	return &countedReader{blob, &p.bytes}
}

type countedReader struct {
	io.Reader
	n *atomic.Int64
}

func (c *countedReader) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.n.Add(int64(n))
	return n, err
}

func (p *Progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leave()
	p.elapsed = max(p.since.Sub(p.start), 1)
}

// summarize closes the log of a pull: what took how long.
func (p *Progress) summarize(log *slog.Logger, err error) {
	s := p.Status()
	bytes := s.FetchedBytes
	dur := time.Duration(s.Elapsed * float64(time.Second)).Round(10 * time.Microsecond)
	if err != nil {
		// The error itself is for whoever called Pull to log, once.
		log.Warn("Image not pulled", "result", Result(err), "phase", s.Phase, "phases", s.phases(), "bytes", bytes, "dur", dur)
		return
	}
	log.Info("Image pulled", "from", s.From, "digest", s.Digest, "layers", s.Layers, "cached", s.LayersCached, "bytes", bytes, "phases", s.phases(), "dur", dur)
}

// phases are the times of the phases gone through, for a log line.
func (s Status) phases() slog.Value {
	var out []slog.Attr
	for _, phase := range Phases() {
		if d, ok := s.Seconds[phase]; ok {
			out = append(out, slog.Duration(string(phase), time.Duration(d*float64(time.Second)).Round(10*time.Microsecond)))
		}
	}
	return slog.GroupValue(out...)
}

// results are the kinds of ends, by the errors they come from. The first that
// fits counts: a pull that is given up ends in other errors too.
var results = []struct {
	err  error
	name string
}{
	{context.Canceled, "cancelled"},
	{policy.ErrRejected, "denied"},
	{registry.ErrUnauthorized, "unauthorized"},
	{layer.ErrDecrypt, "decrypt"},
	{unix.ENOSPC, "no_space"},
	{unix.EDQUOT, "no_space"},
	{registry.ErrNotFound, "not_found"},
	{context.DeadlineExceeded, "timeout"},
	{registry.ErrUnavailable, "unavailable"},
	{registry.ErrBlocked, "blocked"},
	{registry.ErrDigest, "mismatch"},
	{layer.ErrDigest, "mismatch"},
	{layer.ErrDiffID, "mismatch"},
	{registry.ErrReference, "config"},
	{policy.ErrInvalid, "config"},
	{ErrConfig, "config"},
}

// Result names how a pull ended in one word, "ok" for nil and "failed" for what
// has no better one. There are some ten of them, see Results.
func Result(err error) string {
	if err == nil {
		return "ok"
	}
	for _, r := range results {
		if errors.Is(err, r.err) {
			return r.name
		}
	}
	return "failed"
}

// Results lists every value of Result.
func Results() []string {
	out := []string{"ok", "failed"}
	for _, r := range results {
		if !slices.Contains(out, r.name) {
			out = append(out, r.name)
		}
	}
	return out
}
