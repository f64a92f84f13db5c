// Command sealctl is the owner's half of Sealpod: it runs where the keys and
// the images come from, never inside the pod VM.
//
//	sealctl demo
//	sealctl relying-party --listen 127.0.0.1:8080
//	sealctl image encrypt …
//
// Exit codes: 0 done, 1 failed or refused, 2 wrong usage, 130 interrupted.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/podvm"
)

// commands is everything sealctl can do.
func commands() []*cobra.Command {
	return []*cobra.Command{}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// errUsage marks a command line that cannot be understood.
var errUsage = errors.New("see --help")

func run(ctx context.Context, args []string) int {
	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "sealctl: interrupted")
		return 130
	}
	fmt.Fprintf(os.Stderr, "sealctl: %v\n", err)
	if errors.Is(err, errUsage) {
		return 2
	}
	return 1
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "sealctl COMMAND [flags]",
		Short: "The owner's tool for confidential pods",
		Long: `Sealctl runs the relying party that releases keys to attested pods, encrypts
and signs their images, and shows the whole story on one machine.`,
		Example: `  sealctl demo
  sealctl relying-party --store ./rp
  sealctl image sign --key cosign.key registry.example/app:1`,
		Version:       podvm.Version(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetVersionTemplate("sealctl {{.Version}}\n")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return fmt.Errorf("%w (%w)", err, errUsage)
	})
	root.AddCommand(commands()...)
	return root
}
