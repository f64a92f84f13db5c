package server

import (
	"encoding/hex"
	"time"

	"github.com/sealpod/sealpod/kbs"
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
	// InitData is the hex digest of the init data that the evidence vouches for, ""
	// for none.
	InitData string `json:"initData,omitempty"`
	// KBS is where attestations go, "" for nowhere.
	KBS string `json:"kbs,omitempty"`
	// Token is the one that is kept, Attestation the last one that ended; nil if
	// there is none.
	Token       *Token       `json:"token,omitempty"`
	Attestation *Attestation `json:"attestation,omitempty"`
}

// Token is when a token arrived, when the agent attests again if one is asked
// for, and when it expires by the clock of the KBS.
type Token struct {
	Since   time.Time `json:"since"`
	Renewed time.Time `json:"renewed"`
	Expires time.Time `json:"expires"`
}

// Attestation is how an attestation at the KBS went.
type Attestation struct {
	Started time.Time `json:"started"`
	Result  string    `json:"result"`          // ok or failed
	Cause   string    `json:"cause,omitempty"` // why it failed
	// Seconds is how long each step took, with all attempts, and Elapsed the whole
	// with the pauses between them.
	Seconds map[kbs.Step]float64 `json:"stepSeconds"`
	Elapsed float64              `json:"elapsedSeconds"`
}

func newAttestation(now time.Time) *Attestation {
	return &Attestation{Started: now, Seconds: map[kbs.Step]float64{}}
}

func (a *Attestation) step(s kbs.Step, d time.Duration) { a.Seconds[s] += d.Seconds() }

func (a *Attestation) end(err error) {
	a.Elapsed, a.Result, a.Cause = time.Since(a.Started).Seconds(), result(err), podvm.Cause(err)
}

// counters are the agent's metrics; docs/METRICS.md lists them. No label has a
// value that a caller chooses.
type counters struct {
	set                    *metrics.Set
	requests, attestations *metrics.Counter
	seconds, steps         *metrics.Counter
}

func newCounters(started time.Time) *counters {
	set := metrics.New("sealpod")
	c := &counters{
		set:          set,
		requests:     set.Counter("sealpod_aa_requests_total", "Requests answered by the attestation agent, by method and result (ok, failed).", "method", "result"),
		attestations: set.Counter("sealpod_aa_attestations_total", "Attestations at the KBS, by result (ok, failed). GetToken requests beyond them were answered with a kept or shared token.", "result"),
		seconds:      set.Counter("sealpod_aa_attestation_seconds_total", "Time taken by attestations at the KBS."),
		steps:        set.Counter("sealpod_aa_attestation_step_seconds_total", "Time taken by the steps of attestations at the KBS (challenge, evidence, attestation).", "step"),
	}
	set.Gauge("sealpod_aa_start_time_seconds", "When the attestation agent started, in seconds since 1970.", func() float64 { return float64(started.Unix()) })
	for _, step := range kbs.Steps() {
		c.steps.Add(0, string(step))
	}
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

// attested counts an attestation that ended.
func (c *counters) attested(a *Attestation) {
	c.attestations.Inc(a.Result)
	c.seconds.Add(a.Elapsed)
	for step, seconds := range a.Seconds {
		c.steps.Add(seconds, string(step))
	}
}

// Metrics returns the agent's metrics.
func (a *Agent) Metrics() *metrics.Set { return a.count.set }

// Status returns how the agent is.
func (a *Agent) Status() Status {
	s := Status{
		Daemon: "attestation-agent", Version: podvm.Version(), Started: a.started,
		TEE: a.tees.TEE(), Devices: append([]string{}, a.tees.DeviceTEEs()...), EventLog: a.eventsOn && a.events != nil,
		InitData: hex.EncodeToString(a.initData.Digest), Attestation: a.last.Load(),
	}
	if a.tokens != nil {
		s.KBS, s.Token = a.kbs.URL(), a.tokens.status()
	}
	return s
}
