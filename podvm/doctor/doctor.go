// Package doctor looks for what is wrong with a pod VM: named checks that run in
// parallel, each with a time limit, and go on whatever the others find. What is not
// right comes with a hint at what to do next.
//
// Data path: beside it. The doctor applet prints what the checks find; they ask the
// daemons at their sockets, and the relying party at its address, as anybody could,
// and change nothing: an attestation may be made, as for any caller who wants a
// token.
//
// Trust: what daemons, files of the host and the network say is shown, made
// printable, and believed no further than that. It names no secret, but hosts,
// devices and addresses: it is for root.
package doctor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// Status is how something is. The worst finding is a check's.
type Status string

// From good to bad; Skipped is what does not apply to this machine.
const (
	Skipped Status = "skipped"
	OK      Status = "ok"
	Warning Status = "warning"
	Failed  Status = "failed"
)

// rank orders statuses.
var rank = map[Status]int{Skipped: 0, OK: 1, Warning: 2, Failed: 3}

// Finding is one thing a check found.
type Finding struct {
	Status Status `json:"status"`
	Text   string `json:"text"`
	Hint   string `json:"hint,omitempty"` // what to do next
}

// Report is what a check found.
type Report struct {
	Check    string    `json:"check"`
	Status   Status    `json:"status"`
	Findings []Finding `json:"findings"`
	// Seconds is how long parts of the check took, in the order of their running in
	// Findings; nil where that says nothing.
	Seconds map[string]float64 `json:"seconds,omitempty"`
	Elapsed float64            `json:"elapsedSeconds"`
}

// maxText caps a text or a hint, in bytes.
const maxText = 512

func (r *Report) add(s Status, hint, format string, args ...any) {
	r.Findings = append(r.Findings, Finding{s, podvm.Printable(fmt.Sprintf(format, args...), maxText), podvm.Printable(hint, maxText)})
}

func (r *Report) ok(format string, args ...any)         { r.add(OK, "", format, args...) }
func (r *Report) skip(format string, args ...any)       { r.add(Skipped, "", format, args...) }
func (r *Report) warn(hint, format string, args ...any) { r.add(Warning, hint, format, args...) }
func (r *Report) fail(hint, format string, args ...any) { r.add(Failed, hint, format, args...) }

func (r *Report) took(what string, d time.Duration) {
	if r.Seconds == nil {
		r.Seconds = map[string]float64{}
	}
	r.Seconds[what] += d.Seconds()
}

// Check is a question with a name.
type Check struct {
	Name  string
	Limit time.Duration
	// Look adds what it finds. It ends with ctx.
	Look func(ctx context.Context, r *Report)
}

// grace is how much longer than its limit a check may take that does not end with
// its context, as when the disk hangs that it asks for.
const grace = time.Second

// Run runs checks at once and returns their reports in the same order. A check that
// does not end in time is reported as failed, and left behind.
func Run(ctx context.Context, checks []Check) []Report {
	reports := make([]Report, len(checks))
	var all sync.WaitGroup
	for i, c := range checks {
		all.Go(func() { reports[i] = c.run(ctx) })
	}
	all.Wait()
	return reports
}

func (c Check) run(ctx context.Context) Report {
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, c.Limit)
	defer cancel()
	done := make(chan Report, 1)
	go func() {
		r := Report{Check: c.Name}
		c.Look(limited, &r)
		done <- r
	}()
	late := time.NewTimer(c.Limit + grace)
	defer late.Stop()
	var r Report
	select {
	case r = <-done:
		if len(r.Findings) == 0 {
			r.fail("", "the check found nothing at all")
		}
	case <-late.C:
		r = Report{Check: c.Name}
		r.fail("something this check asks for hangs; the journal and dmesg may say what", "no end after %v", c.Limit+grace)
	}
	r.Elapsed = time.Since(start).Seconds()
	r.Status = Skipped
	for _, f := range r.Findings {
		if rank[f.Status] > rank[r.Status] {
			r.Status = f.Status
		}
	}
	return r
}

// Worst is the worst status of reports, Skipped if there are none.
func Worst(reports []Report) Status {
	worst := Skipped
	for _, r := range reports {
		if rank[r.Status] > rank[worst] {
			worst = r.Status
		}
	}
	return worst
}
