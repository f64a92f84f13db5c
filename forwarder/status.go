package forwarder

import (
	"runtime"
	"time"

	"github.com/sealpod/sealpod/podvm/metrics"
)

// Socket names where the forwarder would listen if it had a socket: its metrics
// are at metrics.Socket of it.
const Socket = "/run/confidential-containers/agent-protocol-forwarder.sock"

// Status is what GET /status at the metrics socket answers.
type Status struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`
	// Listen is the address, TLS whether it is spoken there.
	Listen string `json:"listen"`
	TLS    bool   `json:"tls"`
	// PodNamespace and PodName are the pod's names in Kubernetes.
	PodNamespace string `json:"podNamespace,omitempty"`
	PodName      string `json:"podName,omitempty"`
	// Clients are connections that have shown who they are, Strangers those
	// that have not yet.
	Clients   int `json:"clients"`
	Strangers int `json:"strangers"`
}

// counters are the forwarder's metrics; docs/METRICS.md lists them.
type counters struct {
	set         *metrics.Set
	connections *metrics.Counter
}

func newCounters() *counters {
	set := metrics.New("sealpod")
	set.Gauge("sealpod_forwarder_goroutines", "Goroutines of the forwarder.", func() float64 { return float64(runtime.NumGoroutine()) })
	return &counters{
		set:         set,
		connections: set.Counter("sealpod_forwarder_connections_ended_total", "Connections that ended, by result (closed, failed, displaced, refused, timeout, gone).", "result"),
	}
}

// ended counts a connection.
func (c *counters) ended(result string) { c.connections.Inc(result) }

// show adds the connections of s to the metrics that the relay does not know.
func (c *counters) show(s *server) {
	c.set.Gauge("sealpod_forwarder_strangers", "Open connections that have not shown who they are.", func() float64 { n, _ := s.peers.counts(); return float64(n) })
}
