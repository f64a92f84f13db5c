// Command sealctl is the owner's half of Sealpod: it runs where the keys and
// the images come from, never inside the pod VM.
//
//	sealctl demo
//	sealctl relying-party --listen 127.0.0.1:8080
//	sealctl image encrypt …
//
// Exit codes: 0 done, 1 failed or refused (101 for client and secret, as upstream's
// tools), 2 wrong usage, 130 interrupted.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

// commands is everything sealctl can do.
func commands() []*cobra.Command {
	return []*cobra.Command{demoCommand(), relyingPartyCommand(), teeSimCommand(), kbsCommand(), imageCommand(), modelCommand(), secretCommand(), clientCommand()}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	code := cli.Run(ctx, rootCommand(), "sealctl", os.Args[1:], os.Stderr)
	stop()
	os.Exit(code)
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
		Version: podvm.Version(),
	}
	root.AddCommand(commands()...)
	return root
}
