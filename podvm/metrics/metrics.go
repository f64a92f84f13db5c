// Package metrics counts what a daemon does and shows it: as text for
// Prometheus and as JSON for people's tools, on a socket beside the daemon's.
//
// Data path: a daemon makes a Set and adds to its counters, Serve answers
// GET /metrics, GET /status and, to change it, /log-level; the status and
// log-level applets and a scraper ask.
//
// Trust: who may connect may read. Serve's socket is for root alone; a loopback
// port is for every process of the network namespace, so it has the metrics but
// not the status, which names images. Counters have few labels and few series,
// whatever strangers send.
package metrics

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/sealpod/sealpod/podvm"
)

// MaxSeries is how many combinations of label values a counter keeps apart.
// Further ones are counted together, as "other".
const MaxSeries = 256

// other is the value of every label of a combination beyond MaxSeries.
const other = "other"

// ContentType is that of Text: the text exposition, version 0.0.4.
// Source: prometheus.io/docs/instrumenting/exposition_formats.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Set is the metrics of a program. It is safe for concurrent use; the zero
// value is not usable, see New.
type Set struct {
	mu       sync.Mutex
	families map[string]*family
}

type family struct {
	name, help, kind string
	labels           []string
	series           map[string]float64 // by labels in braces
	read             func() float64     // instead of series
}

// New returns a set that has the build's version as PREFIX_build_info.
func New(prefix string) *Set {
	s := &Set{families: map[string]*family{}}
	name := prefix + "_build_info"
	s.families[name] = &family{
		name: name, help: "The version of this build.", kind: "gauge",
		series: map[string]float64{braces([]string{"version"}, []string{podvm.Version()}): 1},
	}
	return s
}

// Counter is a number that only grows, per combination of label values.
type Counter struct {
	set *Set
	f   *family
}

// Counter adds a counter to the set. name ends in _total and has its unit before
// that. One without labels shows 0 from the start, so that a rate over it is
// defined.
func (s *Set) Counter(name, help string, labels ...string) *Counter {
	f := &family{name: name, help: help, kind: "counter", labels: labels, series: map[string]float64{}}
	if len(labels) == 0 {
		f.series[""] = 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families[name] = f
	return &Counter{s, f}
}

// Gauge adds a value to the set that is read when it is asked for. read must
// not use the set.
func (s *Set) Gauge(name, help string, read func() float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families[name] = &family{name: name, help: help, kind: "gauge", read: read}
}

// CounterFunc adds a counter without labels that is read when it is asked for:
// for what is counted too often for Counter. read must not use the set.
func (s *Set) CounterFunc(name, help string, read func() float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.families[name] = &family{name: name, help: help, kind: "counter", read: read}
}

// Add adds n, which is not negative. values are those of the counter's labels,
// in their order; they should come from a small fixed set, see MaxSeries.
func (c *Counter) Add(n float64, values ...string) {
	c.set.mu.Lock()
	defer c.set.mu.Unlock()
	key := braces(c.f.labels, values)
	if _, known := c.f.series[key]; !known && len(c.f.series) >= MaxSeries {
		key = braces(c.f.labels, slices.Repeat([]string{other}, len(c.f.labels)))
	}
	c.f.series[key] += n
}

// Inc is Add of one.
func (c *Counter) Inc(values ...string) { c.Add(1, values...) }

// Text is everything in the text exposition, families and series sorted.
func (s *Set) Text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.families)) {
		f := s.families[name]
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, f.help, name, f.kind)
		if f.read != nil {
			fmt.Fprintf(&b, "%s %s\n", name, number(f.read()))
		}
		for _, key := range slices.Sorted(maps.Keys(f.series)) {
			fmt.Fprintf(&b, "%s%s %s\n", name, key, number(f.series[key]))
		}
	}
	return b.String()
}

// number writes counts without exponent as far as they are exact.
func number(f float64) string {
	if f == float64(int64(f)) && f < 1<<53 && f > -1<<53 {
		return strconv.FormatInt(int64(f), 10)
	}
	return strconv.FormatFloat(f, 'g', -1, 64)
}

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// braces writes {label="value",…}, "" without labels. A value that is missing
// is empty; one too many is dropped.
func braces(labels, values []string) string {
	if len(labels) == 0 {
		return ""
	}
	pairs := make([]string, 0, len(labels))
	for i, l := range labels {
		v := ""
		if i < len(values) {
			v = values[i]
		}
		pairs = append(pairs, l+`="`+escapes.Replace(strings.ToValidUTF8(v, "?"))+`"`)
	}
	return "{" + strings.Join(pairs, ",") + "}"
}
