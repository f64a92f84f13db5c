package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
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
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
)

// maxPacketFile caps the file of unwrap-key, in bytes.
const maxPacketFile = 1 << 20

// oneshotFlags is the command line of upstream's cdh-oneshot before the
// subcommand.
type oneshotFlags struct {
	config string
	retry  uint
	// progress is told of pulls; nil but for pull-image.
	progress *progressView
}

// cdhOneshot parses its command line by itself: upstream's -r means one thing
// before a subcommand and another after it.
func cdhOneshot() *cobra.Command {
	cmd := oneshotTree()
	outer := &cobra.Command{
		Use: cmd.Use, Short: cmd.Short, Long: cmd.Long, Example: cmd.Example,
		DisableFlagParsing: true,
		RunE: func(outer *cobra.Command, args []string) error {
			started := false
			cmd.PersistentPreRun = func(*cobra.Command, []string) { started = true }
			cmd.SilenceErrors, cmd.SilenceUsage = true, true
			cmd.CompletionOptions.HiddenDefaultCmd = true
			cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
			cmd.SetOut(outer.OutOrStdout())
			cmd.SetErr(outer.ErrOrStderr())
			cmd.SetArgs(args)
			err := cmd.ExecuteContext(outer.Context())
			if err != nil && !started && !errors.Is(err, cli.ErrUsage) {
				return fmt.Errorf("%w (%w)", err, cli.ErrUsage)
			}
			return err
		},
	}
	return outer
}

func oneshotTree() *cobra.Command {
	var f oneshotFlags
	cmd := &cobra.Command{
		Use:   "cdh-oneshot",
		Short: "One call of the data hub, without its daemon",
		Long: `cdh-oneshot does what one call of the confidential data hub does and prints the
result on stdout: a resource or key as base64, the digest of an image. Logs go
to stderr. It needs the attestation agent as the daemon does, and works beside
the daemon except that both cannot pull into the same work_dir.

Unsealing secrets and mounting volumes are not part of this build.`,
		Example: `  cdh-oneshot -c cdh.toml get-resource --resource-uri kbs:///default/key/1
  cdh-oneshot -c cdh.toml unwrap-key --annotation-path packet.json
  cdh-oneshot -c cdh.toml pull-image --image-url registry.example/app:1 --bundle-path /run/app
  cdh-oneshot -c cdh.toml pull-image --image-url registry.example/app:1 --dry-run`,
		Args:             cobra.ArbitraryArgs,
		Version:          podvm.Version(),
		TraverseChildren: true,
		RunE: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown subcommand %q: want get-resource, unwrap-key or pull-image (%w)", podvm.Printable(args[0], 64), cli.ErrUsage)
			}
			return fmt.Errorf("a subcommand is missing: get-resource, unwrap-key or pull-image (%w)", cli.ErrUsage)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.config, "config", "c", "", "the data hub's configuration `file`, .toml or .json")
	fl.UintVarP(&f.retry, "retry", "r", 3, "try so many `times` again to get a resource or key")
	fl.BoolP("version", "V", false, "print the version")
	cmd.AddCommand(f.getResource(), f.unwrapKey(), f.pullImage())
	return cmd
}

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
			packet, err := podvm.ReadFileMax(path, maxPacketFile)
			if err != nil {
				return err
			}
			return f.secret(cmd.OutOrStdout(), func(ctx context.Context, h *server.Hub) (podvm.Secret, error) { return h.UnwrapKey(ctx, packet) })
		},
	}
	cmd.Flags().StringVarP(&path, "annotation-path", "a", "", "`file` with the layer's annotation packet (JSON)")
	return cmd
}

// pullFlags is the command line of pull-image.
type pullFlags struct {
	image, bundle string
	dry, json     bool
}

func (f *oneshotFlags) pullImage() *cobra.Command {
	var p pullFlags
	cmd := &cobra.Command{
		Use: "pull-image", Short: "Pull an image and make a bundle of it", Args: cobra.NoArgs,
		Long: `Pulls an image as the daemon does, and shows how far it is on stderr. With
--dry-run it goes as far as the policy, tells what each requirement said and
which layers there are, and neither fetches nor writes anything.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := given("image-url", p.image); err != nil {
				return err
			}
			if p.bundle == "" && !p.dry {
				return fmt.Errorf("--bundle-path or --dry-run is missing (%w)", cli.ErrUsage)
			}
			if p.dry {
				return f.dryRun(cmd.OutOrStdout(), p)
			}
			return f.pull(cmd.OutOrStdout(), cmd.ErrOrStderr(), p)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&p.image, "image-url", "i", "", "the image, `REGISTRY/NAME:TAG` or @DIGEST")
	fl.StringVarP(&p.bundle, "bundle-path", "b", "", "the `directory` to make rootfs and config.json in")
	fl.BoolVar(&p.dry, "dry-run", false, "only tell what a pull would meet")
	fl.BoolVar(&p.json, "json", false, "print the result as JSON")
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
	host := podvm.HostFromEnv()
	var out io.Writer = os.Stderr
	level := config.Log.Level
	if f.progress != nil {
		out, config.Observer = f.progress, f.progress
		if f.progress.terminal && level == "" {
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
			case <-time.After(time.Second):
			case <-ctx.Done():
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

func (f *oneshotFlags) pull(out, errOut io.Writer, p pullFlags) error {
	f.progress = newProgressView(errOut, os.LookupEnv)
	defer f.progress.Close()
	return f.with(func(ctx context.Context, h *server.Hub) error {
		digest, err := h.Pull(ctx, p.image, p.bundle)
		f.progress.Close()
		if err != nil {
			return told(err)
		}
		if p.json {
			return json.NewEncoder(out).Encode(struct {
				imagepull.Status
				Digest string `json:"digest"`
				Bundle string `json:"bundle"`
			}{f.progress.last(), digest, p.bundle})
		}
		_, err = fmt.Fprintf(out, "image digest: %s\n", digest)
		return err
	})
}

var errNotPullable = errors.New("the image cannot be pulled")

func (f *oneshotFlags) dryRun(out io.Writer, p pullFlags) error {
	return f.with(func(ctx context.Context, h *server.Hub) error {
		report, err := h.DryRun(ctx, p.image)
		if err != nil {
			return told(err)
		}
		if p.json {
			err = json.NewEncoder(out).Encode(report)
		} else {
			_, err = io.WriteString(out, report.String())
		}
		if err == nil && !report.Pullable() {
			err = errNotPullable
		}
		return err
	})
}
