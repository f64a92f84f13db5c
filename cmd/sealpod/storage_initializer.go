package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/model"
	"github.com/sealpod/sealpod/podvm"
)

// storageInitializer is KServe's storage initializer.
// Source: kserve python/storage-initializer/scripts/initializer-entrypoint at
// aaac4e2.
func storageInitializer() *cobra.Command {
	return &cobra.Command{
		Use:   "storage-initializer SOURCE FOLDER [SOURCE FOLDER ...]",
		Short: "Fetch a model for KServe, decrypted and checked",
		Long: `storage-initializer takes the place of KServe's init container of that name. It
fetches models from s3, http(s) and other sources into folders, in parallel, and
continues where a run before it was ended. A model sealed by "sealctl model seal" is
decrypted on the way, with the key that CONFIDENTIAL_RESOURCE_ID names and this
pod's data hub gets; layers of an oci image with keys that the data hub opens by
its socket, where it is mounted; so are files in KServe's JWE form, files of age, and, with
MODEL_ENCRYPTED, what openssl enc wrote. It logs to stderr and writes only into the
folders and /dev/termination-log.

Environment: KServe's for credentials, STORAGE_CONFIG and STORAGE_OVERRIDE_CONFIG,
STORAGE_ALLOW_PATTERNS and STORAGE_IGNORE_PATTERNS; CONFIDENTIAL_ENABLED,
CONFIDENTIAL_RESOURCE_ID, CDH_ADDR; MODEL_ENCRYPTED, MODEL_DECRYPTION_KEY,
MODEL_NAME, MODEL_FORMAT; MODEL_STRICT=true refuses files nobody vouches for.

Exit codes: 0 done, 1 the source, 2 wrong usage, 3 the key is refused, 4 what came
is not what was sealed, 5 no room, 6 nobody can be asked for the key.`,
		Example: `  CONFIDENTIAL_ENABLED=true CONFIDENTIAL_RESOURCE_ID=kbs:///acme/models/granite \
      sealpod storage-initializer s3://models/granite /mnt/models
  sealpod storage-initializer https://models.example/model.tar.gz /mnt/models
  sealpod storage-initializer s3://models/base /mnt/models/base s3://models/adapter /mnt/models/adapter`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error { return initializeStorage(cmd.ErrOrStderr(), args) },
	}
}

// initializeStorage fetches, and tells on errOut and in the termination log how
// it went.
func initializeStorage(errOut io.Writer, args []string) error {
	host := podvm.HostFromEnv()
	view := cli.NewView(errOut, os.LookupEnv)
	defer view.Close()
	log, _, err := podvm.NewLogger(view, host, "storage-initializer", "")
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	if err := podvm.NoCoreDumps(); err != nil {
		log.Warn("Core dumps stay possible", "err", err)
	}
	log.Info("Starting", "version", podvm.Version(), "memory", model.LimitMemory(host))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGHUP, syscall.SIGTERM)
	defer stop()
	progress := model.NewProgress()
	view.Show(func() (int, string) {
		s := progress.Status()
		return s.Percent(), s.String()
	})
	cfg := model.Config{Host: host, Log: log, Progress: progress}
	if _, err := os.Stat(host.Path(podvm.CDHSocket)); err == nil {
		cfg.Keys = imagepull.SocketKeys(host.Path(podvm.CDHSocket))
	}
	err = model.Run(ctx, args, cfg)
	view.Close()
	if err == nil {
		_, err = io.WriteString(errOut, progress.Status().String()+"\n")
		return err
	}
	log.Error("Failed", "err", err)
	code, line := model.Outcome(err)
	if err := model.Terminate(host, line); err != nil {
		log.Warn("The reason is not where Kubernetes looks for it", "err", err)
	}
	return cli.WithCode(errors.New(line), code)
}
