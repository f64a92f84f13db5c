package relay

import (
	"sync/atomic"

	"github.com/sealpod/sealpod/podvm/metrics"
)

// Metrics counts what relays do. The zero value counts and shows nothing. It is
// safe for concurrent use.
type Metrics struct {
	open                        atomic.Int64
	dials, dialFailures, lost   atomic.Uint64
	passed, intercepted, failed atomic.Uint64
	toAgent, toHost             atomic.Uint64
}

// NewMetrics returns Metrics that set shows.
func NewMetrics(set *metrics.Set) *Metrics {
	m := new(Metrics)
	set.Gauge("sealpod_forwarder_connections", "Host connections that are open.", func() float64 { return float64(m.open.Load()) })
	for _, c := range []struct {
		name, help string
		from       *atomic.Uint64
	}{
		{"agent_dials", "Attempts to connect to the agent.", &m.dials},
		{"agent_dial_failures", "Attempts to connect to the agent that failed.", &m.dialFailures},
		{"agent_losses", "Agent connections that ended before their host connection.", &m.lost},
		{"calls_passed", "Calls for the agent as they are.", &m.passed},
		{"calls_intercepted", "Calls that are changed on their way.", &m.intercepted},
		{"calls_failed", "Frames and calls answered by the forwarder itself.", &m.failed},
		{"to_agent_bytes", "Bytes of frames that came from hosts.", &m.toAgent},
		{"to_host_bytes", "Bytes of frames sent to hosts.", &m.toHost},
	} {
		set.CounterFunc("sealpod_forwarder_"+c.name+"_total", c.help, func() float64 { return float64(c.from.Load()) })
	}
	return m
}
