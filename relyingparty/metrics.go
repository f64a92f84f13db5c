package relyingparty

import (
	"sync/atomic"

	"github.com/sealpod/sealpod/podvm/metrics"
)

// counters count events under the names of Trustee's metrics.
// Source: trustee kbs/src/prometheus/mod.rs at 78962cd4.
type counters struct {
	attestations atomic.Uint64
	set          *metrics.Set
	byName       map[string]*metrics.Counter
}

func newMetrics() *counters {
	c := &counters{set: metrics.New("kbs"), byName: map[string]*metrics.Counter{}}
	for _, m := range []struct{ name, help, label string }{
		{"kbs_http_requests_total", "HTTP requests.", ""},
		{"kbs_auth_requests_total", "Handshakes begun or refused.", ""},
		{"kbs_auth_successes_total", "Handshakes begun.", ""},
		{"kbs_auth_errors_total", "Handshakes refused.", ""},
		{"kbs_attestation_requests_total", "Attestations asked for.", ""},
		{"kbs_attestation_errors_total", "Attestations outside of a handshake.", ""},
		{"kbs_attestation_failures_total", "Evidence that was not accepted.", "tee_type"},
		{"kbs_attestation_successes_total", "Evidence that was accepted.", "tee_type"},
		{"kbs_policy_evaluations_total", "Requests the resource policy was asked about.", ""},
		{"kbs_policy_approvals_total", "Requests it approved.", ""},
		{"kbs_policy_violations_total", "Requests it denied.", ""},
		{"kbs_policy_errors_total", "Requests it could not decide.", ""},
		{"kbs_resource_reads_total", "Resources given out.", "resource_path"},
		{"kbs_resource_writes_total", "Resources set.", "resource_path"},
		{"kbs_resource_deletes_total", "Resources deleted.", "resource_path"},
	} {
		var labels []string
		if m.label != "" {
			labels = []string{m.label}
		}
		c.byName[m.name] = c.set.Counter(m.name, m.help, labels...)
	}
	return c
}

// add counts one event of a metric above; value is that of its label.
func (c *counters) add(name string, value ...string) { c.byName[name].Inc(value...) }

// serveMetrics is GET /metrics.
func (s *Server) serveMetrics(c *call) error {
	c.reply(metrics.ContentType, []byte(s.metrics.set.Text()))
	return nil
}
