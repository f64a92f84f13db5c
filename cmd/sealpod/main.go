// Command sealpod is everything a confidential pod VM runs, in one static
// binary. Which program it is follows from the name it was started under
// (a link such as /usr/local/bin/attestation-agent) or from its first argument:
//
//	sealpod attestation-agent -c /run/peerpod/aa.toml
//	attestation-agent -c /run/peerpod/aa.toml
//
// Exit codes: 0 done or stopped by a signal, 1 failed, 2 wrong usage; cdh-oneshot
// fails with 101, storage-initializer with 1 to 6 as its help says.
package main

import (
	"context"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

// applets is every program in this binary, under the name upstream gives it.
func applets() []*cobra.Command {
	return []*cobra.Command{
		agentProtocolForwarder(),
		attestationAgent(),
		confidentialDataHub(),
		apiServerREST(),
		cdhOneshot(),
		statusApplet(),
		scratchStorage(),
		setupNATForIMDS(),
		netnsApplet(),
		lendRun(),
		processUserData(),
		azureReady(),
		doctorApplet(),
		logLevelApplet(),
		storageInitializer(),
	}
}

func main() { os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:], os.Stderr)) }

// run is main with its surroundings as arguments; it returns the exit code.
func run(argv0 string, args []string, stderr io.Writer) int {
	root := rootCommand()
	for _, a := range root.Commands() {
		if a.Name() == argv0 {
			args = append([]string{argv0}, args...)
		}
	}
	// Daemons watch for signals themselves, see runDaemon.
	return cli.Run(context.Background(), root, argv0, args, stderr)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sealpod APPLET [flags]",
		Short: "What runs inside a confidential pod VM",
		Long: `Sealpod is the in-guest half of Confidential Containers in one binary.
It acts as the applet whose name it is started under (by a link), or as the
one named by its first argument.`,
		Example: `  sealpod attestation-agent -c /run/peerpod/aa.toml
  ln -s sealpod confidential-data-hub && ./confidential-data-hub -c cdh.toml`,
		Version: podvm.Version(),
	}
	root.AddCommand(applets()...)
	return root
}
