package testenv

import (
	"errors"
	"os"
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
	t.Run("of the module", func(t *testing.T) {
		root := t.TempDir()
		own := filepath.Join(root, "bin", "tools", "sealpod-own-tool")
		deep := filepath.Join(root, "a", "b")
		if err := errors.Join(os.MkdirAll(filepath.Dir(own), 0o755), os.MkdirAll(deep, 0o755),
			os.WriteFile(filepath.Join(root, "go.mod"), nil, 0o600), os.WriteFile(own, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
		t.Chdir(deep)
		if got := Tool(t, "sealpod-own-tool"); got != own {
			t.Errorf("it is at %q", got)
		}
	})
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
