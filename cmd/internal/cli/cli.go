// Package cli is what the two programs share at their edge: how a command
// tree becomes an exit code and an error becomes a line on stderr.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// Exit codes of both programs.
const (
	ExitOK          = 0
	ExitFailed      = 1
	ExitUsage       = 2
	ExitPanic       = 101 // upstream's tools, where they fail
	ExitInterrupted = 130
)

// ErrUsage marks an error of the command line itself that only the command can
// find out about; it exits with ExitUsage.
var ErrUsage = errors.New("see --help")

// ErrTold marks an error that the command has told the user itself, in words of
// upstream's; Run prints nothing more.
var ErrTold = errors.New("told")

// Run executes root with args and returns the exit code. Whatever goes wrong
// before a command starts (unknown command, flag or argument) is ExitUsage. A
// failure after ctx ended is ExitInterrupted. Errors go to stderr after name.
func Run(ctx context.Context, root *cobra.Command, name string, args []string, stderr io.Writer) int {
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return ExitOK
	case ctx.Err() != nil:
		fmt.Fprintf(stderr, "%s: interrupted\n", name)
		return ExitInterrupted
	case !started:
		fmt.Fprintf(stderr, "%s: %v (%v)\n", name, err, ErrUsage)
		return ExitUsage
	case errors.Is(err, ErrTold):
		return code(err)
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return code(err)
}

// codeError is an error with an exit code of its own.
type codeError struct {
	error
	code int
}

func (e *codeError) Unwrap() error { return e.error }

// WithCode gives err an exit code of its own.
func WithCode(err error, code int) error { return &codeError{err, code} }

// code is the exit code for a command that ended with err.
func code(err error) int {
	if c := new(codeError); errors.As(err, &c) {
		return c.code
	}
	switch e := new(panicError); {
	case errors.Is(err, ErrUsage):
		return ExitUsage
	case errors.As(err, &e):
		return ExitPanic
	}
	return ExitFailed
}
