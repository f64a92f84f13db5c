package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/userdata/azureready"
)

// azureReady has upstream's command line, which is that of package flag.
func azureReady() *cobra.Command {
	return &cobra.Command{
		Use:                "azure-ready",
		Short:              "Tell Azure's fabric that this VM is up",
		DisableFlagParsing: true, // package flag does that
		RunE: func(cmd *cobra.Command, args []string) error {
			var c azureready.Config
			fl := flag.NewFlagSet("azure-ready", flag.ContinueOnError)
			fl.SetOutput(cmd.ErrOrStderr())
			fl.StringVar(&c.Endpoint, "endpoint", azureready.DefaultEndpoint, "base `URL` of the WireServer")
			fl.DurationVar(&c.Timeout, "timeout", azureready.DefaultTimeout, "how long each of the three requests may take")
			verbose := fl.Bool("v", false, "log each step")
			switch err := fl.Parse(args); {
			case errors.Is(err, flag.ErrHelp):
				return nil
			case err != nil:
				return fmt.Errorf("%w: %w", cli.ErrTold, cli.ErrUsage) // package flag has said what
			case fl.NArg() > 0:
				return fmt.Errorf("unexpected argument %q (%w)", podvm.Printable(fl.Arg(0), 64), cli.ErrUsage)
			case c.Timeout <= 0:
				return fmt.Errorf("-timeout %v: want more than 0 (%w)", c.Timeout, cli.ErrUsage)
			}
			level := ""
			if *verbose {
				level = "debug"
			}
			log, _, err := podvm.NewLogger(cmd.ErrOrStderr(), podvm.Host{}, "azure-ready", level)
			if err != nil {
				return err
			}
			c.Log = log
			ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
			defer stop()
			return azureready.Report(ctx, c)
		},
	}
}
