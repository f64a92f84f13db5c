package doctor

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// find returns the findings of a status, one per line.
func find(r *Report, s Status) string {
	var texts []string
	for _, f := range r.Findings {
		if f.Status == s {
			texts = append(texts, f.Text)
		}
	}
	return strings.Join(texts, "\n")
}

// wants checks that the findings of each status are as wanted, each part in one of
// them, and that there are no others. Whatever is wrong has a hint.
func (r *Report) wants(t *testing.T, want map[Status][]string) {
	t.Helper()
	for _, s := range []Status{OK, Warning, Failed, Skipped} {
		got := find(r, s)
		for _, part := range want[s] {
			if !strings.Contains(got, part) {
				t.Errorf("no %q among what is %s:\n%s", part, s, got)
			}
		}
		if n := strings.Count(got, "\n") + 1; got != "" && n != len(want[s]) || got == "" && len(want[s]) > 0 {
			t.Errorf("%d findings are %s, want %d:\n%s", n, s, len(want[s]), got)
		}
	}
	for _, f := range r.Findings {
		if f.Status == Failed && f.Hint == "" {
			t.Errorf("no hint: %s", f.Text)
		}
	}
}

// Checks run at once, one that hangs or finds nothing is reported, and none keeps
// the others.
func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		both, release := make(chan struct{}), make(chan struct{})
		checks := []Check{
			{"waits for the next", time.Hour, func(_ context.Context, r *Report) { <-both; r.ok("fine"); r.skip("and more") }},
			{"frees it", time.Hour, func(_ context.Context, r *Report) { close(both); r.warn("hint", "strange\x1b[2J") }},
			{"ends with its context", time.Second, func(ctx context.Context, r *Report) { <-ctx.Done(); r.fail("hint", "%v", ctx.Err()) }},
			{"hangs", time.Minute, func(_ context.Context, r *Report) { <-release; r.ok("too late") }},
			{"says nothing", time.Second, func(context.Context, *Report) {}},
			{"does not apply", time.Second, func(_ context.Context, r *Report) { r.skip("no") }},
		}
		start := time.Now()
		reports := Run(t.Context(), checks)
		if took := time.Since(start); took != time.Minute+grace {
			t.Errorf("it took %v", took)
		}
		close(release)
		var got []string
		for _, r := range reports {
			got = append(got, r.Check+": "+string(r.Status)+": "+r.Findings[0].Text)
		}
		want := []string{
			"waits for the next: ok: fine", "frees it: warning: strange [2J", "ends with its context: failed: context deadline exceeded",
			"hangs: failed: no end after 1m1s", "says nothing: failed: the check found nothing at all", "does not apply: skipped: no",
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if Worst(reports) != Failed || Worst(reports[:2]) != Warning || Worst(reports[5:]) != Skipped || Worst(nil) != Skipped {
			t.Error("the worst is not the worst")
		}
		if reports[2].Elapsed != 1 {
			t.Errorf("%v s", reports[2].Elapsed)
		}
	})
}

func TestEveryCheckHasANameAndALimit(t *testing.T) {
	names := map[string]bool{}
	for _, c := range Checks(Config{}) {
		if c.Name == "" || names[c.Name] || c.Limit <= 0 || c.Limit > 2*time.Minute || c.Look == nil {
			t.Errorf("%+v", c)
		}
		names[c.Name] = true
	}
	if len(names) < 10 {
		t.Errorf("%d checks", len(names))
	}
}
