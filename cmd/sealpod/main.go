// Command sealpod is everything a confidential pod VM runs, in one static
// binary. Which program it is follows from the name it was started under
// (a link such as /usr/local/bin/attestation-agent) or from its first argument:
//
//	sealpod attestation-agent -c /run/peerpod/aa.toml
//	attestation-agent -c /run/peerpod/aa.toml
//
// Exit codes: 0 done or stopped by a signal, 1 failed, 2 wrong usage.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/podvm"
)

// applets is every program in this binary, under the name upstream gives it.
func applets() []*cobra.Command {
	return []*cobra.Command{}
}

func main() { os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:])) }

// run is main with its surroundings as arguments; it returns the exit code.
func run(argv0 string, args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	for _, a := range root.Commands() {
		if a.Name() == argv0 {
			root.SetArgs(append([]string{argv0}, args...))
		}
	}
	err := root.Execute()
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", argv0, err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

// errUsage marks a command line that cannot be understood.
var errUsage = errors.New("see --help")

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sealpod APPLET [flags]",
		Short: "What runs inside a confidential pod VM",
		Long: `Sealpod is the in-guest half of Confidential Containers in one binary.
It acts as the applet whose name it is started under (by a link), or as the
one named by its first argument.`,
		Example: `  sealpod attestation-agent -c /run/peerpod/aa.toml
  ln -s sealpod confidential-data-hub && ./confidential-data-hub -c cdh.toml`,
		Version:       podvm.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetVersionTemplate("sealpod {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w (%w)", err, errUsage)
	})
	root.AddCommand(applets()...)
	return root
}
