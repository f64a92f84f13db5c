package metrics

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestText(t *testing.T) {
	s := New("sealpod")
	plain := s.Counter("b_total", "Things.")
	labelled := s.Counter("a_bytes_total", "Bytes by what.", "what", "how")
	s.Gauge("c", "Now.", func() float64 { return 1.5 })
	s.CounterFunc("d_total", "So far.", func() float64 { return 3 })
	plain.Add(1 << 40)
	labelled.Add(2, "x", `q"uo\te`+"\n\xff")
	labelled.Inc("x")
	_, got, _ := strings.Cut(s.Text(), "# HELP a_")
	want := `bytes_total Bytes by what.
# TYPE a_bytes_total counter
a_bytes_total{what="x",how=""} 1
a_bytes_total{what="x",how="q\"uo\\te\n?"} 2
# HELP b_total Things.
# TYPE b_total counter
b_total 1099511627776
# HELP c Now.
# TYPE c gauge
c 1.5
# HELP d_total So far.
# TYPE d_total counter
d_total 3
`
	if got, _, _ = strings.Cut(got, "# HELP sealpod_build_info"); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	if !strings.Contains(s.Text(), "sealpod_build_info{version=") {
		t.Error("no version")
	}
}

// Values that a stranger chooses do not make series without end.
func TestSeriesAreBounded(t *testing.T) {
	s := New("sealpod")
	c := s.Counter("n_total", "Things.", "a", "b")
	for i := range 100_000 {
		c.Inc(fmt.Sprint(i), "x")
	}
	text := s.Text()
	if n := strings.Count(text, "n_total{"); n != MaxSeries+1 {
		t.Errorf("%d series", n)
	}
	if !strings.Contains(text, fmt.Sprintf(`n_total{a="other",b="other"} %d`, 100_000-MaxSeries)) {
		t.Error("what is beyond is not counted")
	}
}

// What Text writes, Counters reads: only what grows, and nothing that is not a
// number.
func TestCountersAreReadBack(t *testing.T) {
	s := New("sealpod")
	s.Counter("a_total", "A.", "result").Add(2, "o k\"")
	s.Counter("b_seconds_total", "B.").Add(0.25)
	s.Gauge("c", "C.", func() float64 { return 7 })
	text := s.Text() + "# TYPE d_total counter\nd_total many\nd_total\n# TYPE\ne_total 3\n"
	got := Counters(text)
	want := map[string]float64{`a_total{result="o k\""}`: 2, "b_seconds_total": 0.25}
	if !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
	if got := Counters(""); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
