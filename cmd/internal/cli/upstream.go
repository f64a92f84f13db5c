package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// Upstream returns a command with the manners of upstream's tools, which tree
// describes: flags belong before or after a subcommand, where one letter may mean
// two things, and a failure exits with ExitPanic. name is what help calls it,
// such as "sealctl client cdh".
func Upstream(name string, tree *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: tree.Use, Short: tree.Short, Long: tree.Long, Example: tree.Example,
		DisableFlagParsing: true, // tree does that
		RunE: func(outer *cobra.Command, args []string) error {
			started := false
			tree.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: name}
			tree.PersistentPreRun = func(*cobra.Command, []string) { started = true }
			tree.SilenceErrors, tree.SilenceUsage = true, true
			tree.TraverseChildren = true
			tree.CompletionOptions.HiddenDefaultCmd = true
			tree.SetVersionTemplate("{{.Name}} {{.Version}}\n")
			tree.SetIn(outer.InOrStdin())
			tree.SetOut(outer.OutOrStdout())
			tree.SetErr(outer.ErrOrStderr())
			tree.SetArgs(args)
			err := tree.ExecuteContext(outer.Context())
			switch {
			case err == nil || errors.Is(err, ErrUsage):
				return err
			case !started:
				return fmt.Errorf("%w (%w)", err, ErrUsage)
			}
			return &panicError{err}
		},
	}
}

// panicError is an error that exits with ExitPanic.
type panicError struct{ error }

func (e *panicError) Unwrap() error { return e.error }
