package server

import (
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

// Status is what GET /status at the metrics socket answers. It names images, so
// it is for root alone.
type Status struct {
	Daemon  string    `json:"daemon"`
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	KBC     string    `json:"kbc"`
	Pulls   []Pull    `json:"pulls"`     // going on, oldest first
	Last    []Pull    `json:"lastPulls"` // newest first
}

// Pull is an image that is or was being pulled.
type Pull struct {
	imagepull.Status
	Percent int    `json:"percent"`
	Result  string `json:"result,omitempty"` // see imagepull.Result; "" while it goes on
	Cause   string `json:"cause,omitempty"`  // why it failed
}

// maxLast is how many pulls that ended are remembered.
const maxLast = 20

// pulls follows the pulls of a hub. The zero value is ready for use.
type pulls struct {
	mu   sync.Mutex
	now  []*imagepull.Progress // as many as the socket lets in
	last []Pull                // oldest first
	tidy *time.Timer           // runs when nothing has been pulled for tidyAfter
}

// tidyAfter is how long after its last pull a hub gives back the memory that
// pulls took: other programs of the pod VM may need it.
const tidyAfter = time.Second

func (p *pulls) begin(progress *imagepull.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = append(p.now, progress)
}

func (p *pulls) end(progress *imagepull.Progress, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = slices.DeleteFunc(p.now, func(q *imagepull.Progress) bool { return q == progress })
	switch {
	case len(p.now) > 0:
	case p.tidy == nil:
		p.tidy = time.AfterFunc(tidyAfter, debug.FreeOSMemory)
	default:
		p.tidy.Reset(tidyAfter)
	}
	if len(p.last) == maxLast {
		p.last = slices.Delete(p.last, 0, 1)
	}
	s := progress.Status()
	p.last = append(p.last, Pull{Status: s, Percent: s.Percent(), Result: imagepull.Result(err), Cause: podvm.Cause(err)})
}

// close ends what end has begun.
func (p *pulls) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.tidy != nil {
		p.tidy.Stop()
	}
}

func (p *pulls) list() (now, last []Pull) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now, last = make([]Pull, 0, len(p.now)), slices.Clone(p.last)
	for _, progress := range p.now {
		s := progress.Status()
		now = append(now, Pull{Status: s, Percent: s.Percent()})
	}
	slices.Reverse(last)
	return now, append([]Pull{}, last...)
}

func (p *pulls) running() (images, bytes float64) {
	now, _ := p.list()
	for _, one := range now {
		bytes += float64(one.FetchedBytes)
	}
	return float64(len(now)), bytes
}

// counters are the hub's metrics; docs/METRICS.md lists them. No label has a
// value that a caller chooses.
type counters struct {
	set                           *metrics.Set
	calls, pulls, phases, seconds *metrics.Counter
	bytes, layers                 *metrics.Counter
}

func newCounters(h *Hub) *counters {
	set := metrics.New("sealpod")
	c := &counters{
		set:     set,
		calls:   set.Counter("sealpod_cdh_requests_total", "Requests answered by the data hub, by method and result (ok, failed).", "method", "result"),
		pulls:   set.Counter("sealpod_image_pulls_total", "Images pulled or not, by result.", "result"),
		seconds: set.Counter("sealpod_image_pull_seconds_total", "Time taken by pulls that ended, by result.", "result"),
		phases:  set.Counter("sealpod_image_pull_phase_seconds_total", "Time taken by the phases of pulls that ended.", "phase"),
		bytes:   set.Counter("sealpod_image_pull_fetched_bytes_total", "Bytes of layers fetched from registries by pulls that ended."),
		layers:  set.Counter("sealpod_image_pull_layers_total", "Layers of images that were pulled, by where they were (registry, store).", "source"),
	}
	set.Gauge("sealpod_image_pulls_running", "Images being pulled.", func() float64 { n, _ := h.pulls.running(); return n })
	set.Gauge("sealpod_image_pulls_running_fetched_bytes", "Bytes of layers fetched so far by pulls going on.", func() float64 { _, b := h.pulls.running(); return b })
	set.Gauge("sealpod_cdh_start_time_seconds", "When the data hub started, in seconds since 1970.", func() float64 { return float64(h.started.Unix()) })
	for _, result := range imagepull.Results() {
		c.pulls.Add(0, result)
		c.seconds.Add(0, result)
	}
	for _, phase := range imagepull.Phases() {
		c.phases.Add(0, string(phase))
	}
	for _, source := range []string{"registry", "store"} {
		c.layers.Add(0, source)
	}
	for _, method := range []string{"GetResource", "PullImage", "SecureMount", "UnWrapKey", "UnsealSecret"} {
		c.calls.Add(0, method, "ok")
		c.calls.Add(0, method, "failed")
	}
	return c
}

func (c *counters) call(method string, err error) {
	result := "ok"
	if err != nil {
		result = "failed"
	}
	c.calls.Inc(method, result)
}

// pullEnds counts a pull.
func (c *counters) pullEnds(s imagepull.Status, result string) {
	c.pulls.Inc(result)
	c.seconds.Add(s.Elapsed, result)
	for phase, seconds := range s.Seconds {
		c.phases.Add(seconds, string(phase))
	}
	c.bytes.Add(float64(s.FetchedBytes))
	if result == "ok" {
		c.layers.Add(float64(s.LayersCached), "store")
		c.layers.Add(float64(s.LayersDone-s.LayersCached), "registry")
	}
}

// observer follows the pulls of the hub, and tells one more who wants to know.
func (h *Hub) observer() imagepull.Observer { return observer{h} }

type observer struct{ h *Hub }

// PullBegins implements imagepull.Observer.
func (o observer) PullBegins(p *imagepull.Progress) {
	o.h.pulls.begin(p)
	if o.h.cfg.Observer != nil {
		o.h.cfg.Observer.PullBegins(p)
	}
}

// PullEnds implements imagepull.Observer.
func (o observer) PullEnds(p *imagepull.Progress, err error) {
	o.h.pulls.end(p, err)
	o.h.count.pullEnds(p.Status(), imagepull.Result(err))
	if o.h.cfg.Observer != nil {
		o.h.cfg.Observer.PullEnds(p, err)
	}
}

// Metrics returns the hub's metrics.
func (h *Hub) Metrics() *metrics.Set { return h.count.set }

func (h *Hub) status() any {
	s := Status{Daemon: "confidential-data-hub", Version: podvm.Version(), Started: h.started, KBC: h.cfg.KBC.Name}
	s.Pulls, s.Last = h.pulls.list()
	return s
}
