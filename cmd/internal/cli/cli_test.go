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
		"a code of its own":          {t.Context(), []string{"coded"}, 5, "prog: full\n"},
		"tells it itself":            {t.Context(), []string{"told"}, ExitFailed, ""},
		"command finds usage wrong":  {t.Context(), []string{"usage"}, ExitUsage, "choose one (see --help)"},
		"upstream's, works":          {t.Context(), []string{"up", "-r", "a", "sub", "-r", "b"}, ExitOK, ""},
		"upstream's, fails":          {t.Context(), []string{"up", "sub"}, ExitPanic, "prog: broken a b\n"},
		"upstream's, unknown flag":   {t.Context(), []string{"up", "sub", "--nope"}, ExitUsage, "unknown flag: --nope (see --help)"},
		"upstream's, usage wrong":    {t.Context(), []string{"up"}, ExitUsage, "choose one (see --help)"},
		"upstream's, interrupted":    {cancelled, []string{"up", "sub"}, ExitInterrupted, "prog: interrupted\n"},
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
			add("coded", WithCode(errors.New("full"), 5))
			add("told", fmt.Errorf("%w: broken", ErrTold))
			add("usage", fmt.Errorf("choose one (%w)", ErrUsage))
			var before, after string
			up := &cobra.Command{Use: "up", RunE: func(*cobra.Command, []string) error { return fmt.Errorf("choose one (%w)", ErrUsage) }}
			sub := &cobra.Command{Use: "sub", RunE: func(*cobra.Command, []string) error {
				if before == "a" && after == "b" {
					return nil
				}
				return errors.New("broken a b")
			}}
			up.Flags().StringVarP(&before, "retry", "r", "", "")
			sub.Flags().StringVarP(&after, "resource", "r", "", "")
			up.AddCommand(sub)
			root.AddCommand(Upstream("prog up", up))
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
