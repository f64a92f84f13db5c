package rest

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

// MetricsSocket is where metrics and status are when the server listens on a port.
// Its directory is the unit's to make (RuntimeDirectory); without it there are none.
const MetricsSocket = "/run/api-server-rest/metrics.sock"

// Status is what GET /status at the metrics socket answers.
type Status struct {
	Daemon   string    `json:"daemon"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	Features string    `json:"features"`
	Running  int       `json:"running"` // requests
}

// counters are the REST server's metrics; docs/METRICS.md lists them. No label has
// a value that a caller chooses.
type counters struct {
	set      *metrics.Set
	requests *metrics.Counter
}

// labels of requests, by the beginning of their path.
var labels = []string{"/info", "/aa/token", "/aa/evidence", "/aa/additional-evidence", "/aa/aael", "/cdh/resource"}

func newCounters(h *Handler) *counters {
	set := metrics.New("sealpod")
	set.Gauge("sealpod_rest_requests_running", "Requests that are being answered.", func() float64 { return float64(len(h.slots)) })
	set.Gauge("sealpod_rest_start_time_seconds", "When the REST server started, in seconds since 1970.", func() float64 { return float64(h.started.Unix()) })
	return &counters{set, set.Counter("sealpod_rest_requests_total", "Requests answered by the REST server, by path and HTTP status.", "path", "status")}
}

// label is the label of a path, "other" for one that nobody answers.
func label(path string) string {
	for _, l := range labels {
		if path == l || l == "/cdh/resource" && strings.HasPrefix(path, l+"/") {
			return l
		}
	}
	return "other"
}

// counted is a writer that keeps the status of the answer, 0 if there was none.
type counted struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements http.ResponseWriter.
func (c *counted) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (c *counted) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	return c.ResponseWriter.Write(b)
}

// Unwrap is for http.ResponseController.
func (c *counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// answered counts a request.
func (c *counters) answered(path string, w *counted) {
	status := "none" // the caller went away
	if w.status != 0 {
		status = strconv.Itoa(w.status)
	}
	c.requests.Inc(label(path), status)
}

// Metrics returns the server's metrics.
func (h *Handler) Metrics() *metrics.Set { return h.count.set }

// Status returns how the server is.
func (h *Handler) Status() Status {
	return Status{Daemon: "api-server-rest", Version: podvm.Version(), Started: h.started, Features: h.features, Running: len(h.slots)}
}
