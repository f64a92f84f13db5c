package testenv

import (
	"path/filepath"
	"testing"
)

// outcome is a testing.TB that records how it ended instead of ending.
type outcome struct {
	testing.TB
	skipped, failed bool
}

func (o *outcome) Helper()      {}
func (o *outcome) Skip(...any)  { o.skipped = true }
func (o *outcome) Fatal(...any) { o.failed = true }

func TestTool(t *testing.T) {
	if got := Tool(t, "sh"); !filepath.IsAbs(got) {
		t.Errorf("sh is at %q", got)
	}
	t.Run("missing is a skip", func(t *testing.T) {
		t.Setenv(RequireEnv, "")
		t.Setenv(SkipsEnv, "")
		o := &outcome{TB: t}
		Tool(o, "no-such-program-anywhere")
		if !o.skipped || o.failed {
			t.Errorf("%+v", o)
		}
	})
	t.Run("missing is a failure where all is required", func(t *testing.T) {
		t.Setenv(RequireEnv, "1")
		o := &outcome{TB: t}
		Tool(o, "no-such-program-anywhere")
		if o.skipped || !o.failed {
			t.Errorf("%+v", o)
		}
	})
}
