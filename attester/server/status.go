package server

import (
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/metrics"
)

// Status is what GET /status at the metrics socket answers.
type Status struct {
	Daemon   string    `json:"daemon"`
	Version  string    `json:"version"`
	Started  time.Time `json:"started"`
	TEE      string    `json:"tee"`
	Devices  []string  `json:"devices"`
	EventLog bool      `json:"eventLog"` // events are recorded
}

// counters are the agent's metrics; docs/METRICS.md lists them. No label has a
// value that a caller chooses.
type counters struct {
	set                    *metrics.Set
	requests, attestations *metrics.Counter
	seconds                *metrics.Counter
}

func newCounters(started time.Time) *counters {
	set := metrics.New("sealpod")
	c := &counters{
		set:          set,
		requests:     set.Counter("sealpod_aa_requests_total", "Requests answered by the attestation agent, by method and result (ok, failed).", "method", "result"),
		attestations: set.Counter("sealpod_aa_attestations_total", "Attestations at the KBS, by result (ok, failed). GetToken requests beyond them were answered with a kept or shared token.", "result"),
		seconds:      set.Counter("sealpod_aa_attestation_seconds_total", "Time taken by attestations at the KBS."),
	}
	set.Gauge("sealpod_aa_start_time_seconds", "When the attestation agent started, in seconds since 1970.", func() float64 { return float64(started.Unix()) })
	for _, result := range []string{"ok", "failed"} {
		c.attestations.Add(0, result)
		for _, method := range []string{"GetEvidence", "GetAdditionalEvidence", "GetToken", "ExtendRuntimeMeasurement"} {
			c.requests.Add(0, method, result)
		}
	}
	return c
}

func result(err error) string {
	if err != nil {
		return "failed"
	}
	return "ok"
}

// Metrics returns the agent's metrics.
func (a *Agent) Metrics() *metrics.Set { return a.count.set }

// Status returns how the agent is.
func (a *Agent) Status() Status {
	return Status{
		Daemon: "attestation-agent", Version: podvm.Version(), Started: a.started,
		TEE: a.tees.TEE(), Devices: append([]string{}, a.tees.DeviceTEEs()...), EventLog: a.eventsOn && a.events != nil,
	}
}
