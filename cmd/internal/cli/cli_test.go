package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

func TestRun(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	tests := map[string]struct {
		ctx  context.Context
		args []string
		code int
		text string
	}{
		"works":                      {t.Context(), []string{"ok"}, ExitOK, ""},
		"fails":                      {t.Context(), []string{"fail"}, ExitFailed, "prog: broken\n"},
		"unknown command":            {t.Context(), []string{"nope"}, ExitUsage, "unknown command"},
		"unknown flag":               {t.Context(), []string{"ok", "--nope"}, ExitUsage, "unknown flag: --nope (see --help)"},
		"too many arguments":         {t.Context(), []string{"ok", "extra"}, ExitUsage, "see --help"},
		"command finds usage wrong":  {t.Context(), []string{"usage"}, ExitUsage, "choose one (see --help)"},
		"interrupted while it works": {cancelled, []string{"fail"}, ExitInterrupted, "prog: interrupted\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			root := &cobra.Command{Use: "prog"}
			add := func(name string, err error) {
				root.AddCommand(&cobra.Command{
					Use: name, Args: cobra.NoArgs,
					RunE: func(*cobra.Command, []string) error { return err },
				})
			}
			add("ok", nil)
			add("fail", errors.New("broken"))
			add("usage", fmt.Errorf("choose one (%w)", ErrUsage))
			var stderr bytes.Buffer
			if code := Run(tt.ctx, root, "prog", tt.args, &stderr); code != tt.code {
				t.Errorf("exit code %d, want %d", code, tt.code)
			}
			if !strings.Contains(stderr.String(), tt.text) || (tt.text == "") != (stderr.Len() == 0) {
				t.Errorf("stderr %q, want %q", stderr.String(), tt.text)
			}
		})
	}
}
