package relyingparty

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/sealpod/sealpod/podvm"
)

// metrics counts events under the names of Trustee's metrics.
// Source: trustee kbs/src/prometheus/mod.rs at 78962cd4.
type metrics struct {
	attestations atomic.Uint64

	mu     sync.Mutex
	counts map[string]map[string]uint64 // family, then labels in braces or ""
}

// families are shown from the start, so that a rate over them is defined.
func newMetrics() *metrics {
	m := &metrics{counts: map[string]map[string]uint64{}}
	for _, family := range []string{
		"kbs_http_requests_total", "kbs_auth_requests_total", "kbs_auth_successes_total", "kbs_auth_errors_total",
		"kbs_attestation_requests_total", "kbs_attestation_errors_total",
		"kbs_policy_evaluations_total", "kbs_policy_approvals_total", "kbs_policy_violations_total", "kbs_policy_errors_total",
	} {
		m.counts[family] = map[string]uint64{"": 0}
	}
	return m
}

// add counts one event. labels are a name and its value, or nothing; values
// must come from a bounded set, not from strangers.
func (m *metrics) add(family string, labels ...string) {
	series := ""
	if len(labels) == 2 {
		series = fmt.Sprintf("{%s=%q}", labels[0], labels[1])
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts[family] == nil {
		m.counts[family] = map[string]uint64{}
	}
	m.counts[family][series]++
}

// text is the Prometheus text exposition, version 0.0.4.
func (m *metrics) text() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	fmt.Fprintf(&b, "# TYPE kbs_build_info gauge\nkbs_build_info{version=%q} 1\n", podvm.Version())
	for _, family := range slices.Sorted(maps.Keys(m.counts)) {
		fmt.Fprintf(&b, "# TYPE %s counter\n", family)
		for _, series := range slices.Sorted(maps.Keys(m.counts[family])) {
			fmt.Fprintf(&b, "%s%s %d\n", family, series, m.counts[family][series])
		}
	}
	return b.String()
}

// serveMetrics is GET /metrics.
func (s *Server) serveMetrics(c *call) error {
	c.reply("text/plain; version=0.0.4; charset=utf-8", []byte(s.metrics.text()))
	return nil
}
