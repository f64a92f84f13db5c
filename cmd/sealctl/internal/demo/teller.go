package demo

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/status"
)

// teller runs the parts of the story, prints and records them.
type teller struct {
	out    *printer
	report *Report
	good   bool
}

// note is what a step has to say about itself.
type note struct {
	text  string
	facts map[string]string
}

// step runs f and records how it went. Its error is f's.
func (t *teller) step(id, title string, f func() (note, error)) error {
	began := time.Now()
	n, err := f()
	took := time.Since(began)
	s := Step{ID: id, Title: title, OK: err == nil, DurationMS: ms(took), Detail: n.text, Facts: n.facts}
	mark := t.out.ok()
	if err != nil {
		s.Error = err.Error()
		mark, n.text = t.out.failed(), err.Error()
	}
	t.good = err == nil && (t.good || len(t.report.Steps) == 0)
	t.report.Steps = append(t.report.Steps, s)
	t.out.row(mark, title, n.text, took)
	return err
}

// errPrepare marks an error of setting the stage, which refuses nothing.
var errPrepare = errors.New("setting the stage")

// refusal runs f, which must fail with a text that contains want. Its error is
// errPrepare, if that is how f failed.
func (t *teller) refusal(id, title, want string, f func() error) error {
	began := time.Now()
	err := f()
	took := time.Since(began)
	if errors.Is(err, errPrepare) {
		return fmt.Errorf("%s: %w", id, err)
	}
	r := Refusal{ID: id, Title: title, DurationMS: ms(took)}
	mark := t.out.failed()
	r.Reason = "not refused"
	if err != nil {
		r.Reason = status.Convert(err).Message()
		r.OK = strings.Contains(r.Reason, want)
	}
	if r.OK {
		mark = t.out.refused()
	}
	t.good = t.good && r.OK
	t.report.Refusals = append(t.report.Refusals, r)
	t.out.row(mark, title, shorten(r.Reason), took)
	return nil
}

// shorten drops what every reason starts with, for the human reader.
func shorten(reason string) string {
	for _, end := range []string{", error: ", "Get Resource failed: "} {
		if _, why, ok := strings.Cut(reason, end); ok {
			return why
		}
	}
	return reason
}
