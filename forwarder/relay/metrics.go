package relay

import "github.com/sealpod/sealpod/podvm/metrics"

// Metrics counts what relays do. The zero value counts and shows nothing.
type Metrics struct{}

// NewMetrics returns Metrics that are shown in set.
func NewMetrics(set *metrics.Set) *Metrics {
	_ = set
	return new(Metrics)
}
