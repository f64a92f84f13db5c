package main

import (
	"context"
	"fmt"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/userdata"
)

// processUserData has the manners of upstream's: without arguments it explains
// itself, and every failure, of the command line too, is "Error: …" and exit code
// 1.
func processUserData() *cobra.Command {
	outer := &cobra.Command{
		Use:                "process-user-data",
		Short:              "User data of the cloud becomes the pod VM's configuration",
		DisableFlagParsing: true, // the tree does that
	}
	outer.RunE = func(_ *cobra.Command, args []string) error {
		tree := userDataTree()
		tree.SetOut(outer.OutOrStdout())
		tree.SetErr(outer.ErrOrStderr())
		tree.SetArgs(args)
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
		defer stop()
		err := tree.ExecuteContext(ctx)
		if err != nil {
			fmt.Fprintf(outer.ErrOrStderr(), "Error: %v\n", err)
			return fmt.Errorf("%w: %w", cli.ErrTold, err)
		}
		return nil
	}
	return outer
}

func userDataTree() *cobra.Command {
	version := false
	tree := &cobra.Command{
		Use:   "process-user-data",
		Short: "Turn the user data of the cloud into the configuration of this pod VM",
		Long: `Gets the user data that the host gave this VM and writes what it asks for to
/run/peerpod, all of it or nothing. Init data is measured into PCR 8 of the TPM
before, if there is one.`,
		Example: `  process-user-data provision-files
  process-user-data provision-files --measured-only -t 600
  process-user-data provision-files --source none    # cloud-init wrote the files`,
		Args:          cobra.NoArgs,
		SilenceErrors: true, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !version {
				return cmd.Help()
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "process-user-data version %s\n  go: %s\n", podvm.Version(), runtime.Version())
			return err
		},
	}
	tree.CompletionOptions.HiddenDefaultCmd = true
	tree.PersistentFlags().BoolVarP(&version, "version", "v", false, "print the version")
	tree.AddCommand(provisionFiles())
	return tree
}

func provisionFiles() *cobra.Command {
	seconds := int(userdata.DefaultTimeout / time.Second)
	var c userdata.Config
	cmd := &cobra.Command{
		Use:   "provision-files",
		Short: "Get user data and write the files it asks for",
		Long: `Looks for user data at /media/cidata/user-data, on a disk with the label cidata
(ISO 9660, which is read without a mount), and at the metadata services of
Azure, AWS, Google's and Alibaba's clouds, by what the firmware says. Until the
time is up it tries again. Init data that is not usable fails at once, as does
a TPM that refuses, or whose PCR 8 holds something else.

The exit code is 0 when all files are in place, and 1 when none is new. It may
be run again.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Host = podvm.HostFromEnv()
			log, _, err := podvm.NewLogger(cmd.ErrOrStderr(), c.Host, "process-user-data", "")
			if err != nil {
				return err
			}
			if seconds <= 0 {
				return fmt.Errorf("--user-data-fetch-timeout %d: want seconds, more than 0", seconds)
			}
			if err := podvm.NoCoreDumps(); err != nil {
				log.Warn("Core dumps stay possible", "err", err)
			}
			c.Timeout, c.Log = time.Duration(seconds)*time.Second, log
			if c.Host.Simulated() {
				log.Warn("The machine is a simulation", "root", c.Host.Root, "metadata", c.Host.IMDS)
			}
			return userdata.Provision(cmd.Context(), c)
		},
	}
	fl := cmd.Flags()
	fl.IntVarP(&seconds, "user-data-fetch-timeout", "t", seconds, "how many `seconds` user data is waited for")
	fl.StringVar(&c.Source, "source", userdata.Auto, "where user data is `from`: "+strings.Join(userdata.Sources(), ", "))
	fl.BoolVar(&c.MeasuredOnly, "measured-only", false, "refuse an aa.toml or cdh.toml that is not part of the init data")
	fl.BoolVar(&c.NoTPM, "no-tpm", false, "leave PCR 8 alone, for images whose boot loader extends it")
	return cmd
}
