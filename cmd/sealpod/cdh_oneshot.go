package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

// maxInput caps the files of unseal-secret and unwrap-key, in bytes: what fits a
// message to the daemon.
const maxInput = 4 << 20

// retryPause is the time between two tries.
const retryPause = time.Second

// oneshotFlags is the command line of upstream's cdh-oneshot before the
// subcommand.
type oneshotFlags struct {
	config string
	retry  uint
	// progress is told of pulls; nil but for pull-image.
	progress *progressView
	// dry keeps the hub from writing files.
	dry bool
}

func cdhOneshot() *cobra.Command {
	var f oneshotFlags
	cmd := &cobra.Command{
		Use:   "cdh-oneshot",
		Short: "One call of the data hub, without its daemon",
		Long: `cdh-oneshot does what one call of the confidential data hub does and prints the
result on stdout: a resource, secret or key as base64, the digest of an image,
where a volume is. Logs go to stderr. It needs the attestation agent as the daemon
does, and works beside the daemon except that both cannot pull into the same
work_dir. It exits with 101 when it fails, as upstream's does.`,
		Example: `  cdh-oneshot -c cdh.toml get-resource --resource-uri kbs:///default/key/1
  cdh-oneshot -c cdh.toml unseal-secret --secret-path sealed.txt | base64 -d
  cdh-oneshot -c cdh.toml unwrap-key --annotation-path packet.json
  cdh-oneshot -c cdh.toml secure-mount --storage-path volume.json
  cdh-oneshot -c cdh.toml pull-image --image-url registry.example/app:1 --bundle-path /run/app
  cdh-oneshot -c cdh.toml pull-image --image-url registry.example/app:1 --dry-run`,
		Args:    cobra.ArbitraryArgs,
		Version: podvm.Version(),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown subcommand %q: want %s (%w)", podvm.Printable(args[0], 64), oneshotCalls, cli.ErrUsage)
			}
			return fmt.Errorf("a subcommand is missing: %s (%w)", oneshotCalls, cli.ErrUsage)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the data hub's configuration `file`, .toml or .json")
	fl.UintVarP(&f.retry, "retry", "r", 3, "try so many `times` again to get a resource, secret or key")
	fl.BoolP("version", "V", false, "print the version")
	cmd.AddCommand(f.unsealSecret(), f.unwrapKey(), f.getResource(), f.secureMount(), f.pullImage())
	return cli.Upstream("cdh-oneshot", cmd)
}

const oneshotCalls = "unseal-secret, unwrap-key, get-resource, secure-mount or pull-image"

func (f *oneshotFlags) getResource() *cobra.Command {
	var uri string
	cmd := &cobra.Command{
		Use: "get-resource", Short: "Print a resource of the KBS as base64", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("resource-uri", uri); err != nil {
				return err
			}
			return f.secret(cmd.OutOrStdout(), func(ctx context.Context, h *server.Hub) (podvm.Secret, error) { return h.Resource(ctx, uri) })
		},
	}
	cmd.Flags().StringVarP(&uri, "resource-uri", "r", "", "the resource, `kbs:///REPOSITORY/TYPE/TAG`")
	return cmd
}

func (f *oneshotFlags) unwrapKey() *cobra.Command {
	var path string
	cmd := &cobra.Command{
		Use: "unwrap-key", Short: "Print the key of an encrypted layer as base64", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("annotation-path", path); err != nil {
				return err
			}
			packet, err := podvm.ReadFileMax(path, maxInput)
			if err != nil {
				return err
			}
			return f.secret(cmd.OutOrStdout(), func(ctx context.Context, h *server.Hub) (podvm.Secret, error) { return h.UnwrapKey(ctx, packet) })
		},
	}
	cmd.Flags().StringVarP(&path, "annotation-path", "a", "", "`file` with the layer's annotation packet (JSON)")
	return cmd
}

// given is the error for a flag that is missing, or nil.
func given(name, value string) error {
	if value == "" {
		return fmt.Errorf("--%s is missing (%w)", name, cli.ErrUsage)
	}
	return nil
}

// with runs do with a hub until it returns or a signal ends it.
func (f *oneshotFlags) with(do func(ctx context.Context, h *server.Hub) error) (err error) {
	config, unknown, err := server.LoadConfig(f.config, podvm.Host{})
	if err != nil {
		return err
	}
	config.WriteNothing = f.dry
	host := podvm.HostFromEnv()
	var out io.Writer = os.Stderr
	level := config.Log.Level
	if f.progress != nil {
		out, config.Observer = f.progress, f.progress
		if f.progress.Terminal && level == "" {
			level = "warn" // the view says the rest
		}
	}
	log, _, err := podvm.NewLogger(out, host, "cdh-oneshot", level)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	if err := podvm.NoCoreDumps(); err != nil {
		log.Warn("Core dumps stay possible", "err", err)
	}
	for _, u := range unknown {
		log.Warn("The configuration has a key that nothing reads", "file", f.config, "key", u.Key, "line", u.Line)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	defer stop()
	h, err := server.Open(ctx, config, host, log)
	if err != nil {
		return fmt.Errorf("init Hub failed: %w", err)
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	return do(ctx, h)
}

// secret prints what get returns. A failure is tried again after a pause, as
// long as --retry allows.
func (f *oneshotFlags) secret(out io.Writer, get func(context.Context, *server.Hub) (podvm.Secret, error)) error {
	return f.with(func(ctx context.Context, h *server.Hub) error {
		for left := f.retry; ; left-- {
			s, err := get(ctx, h)
			if err == nil {
				defer s.Wipe()
				_, err = fmt.Fprintln(out, base64.StdEncoding.EncodeToString(s))
				return err
			}
			if left == 0 || ctx.Err() != nil {
				return told(err)
			}
			slog.Warn("Not to be had, trying again", "left", left, "err", err)
			select {
			case <-time.After(retryPause):
			case <-ctx.Done():
				return told(err)
			}
		}
	})
}

// told is what to tell of err: the sentence in it, if there is one. The rest is
// for the log.
func told(err error) error {
	cause := podvm.Cause(err)
	if cause == "" {
		return err
	}
	slog.Info("Failed", "err", err)
	return errors.New(cause)
}
