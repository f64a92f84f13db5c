package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/model"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

// modelCommand is "sealctl model".
func modelCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model COMMAND",
		Short: "Seal models for KServe's pods, and look at sealed ones",
		Long: `A sealed model is a folder of encrypted files with a manifest, for any object store.
The storage initializer of sealpod opens it in the pod, with a key that the relying
party releases there. A MODEL is a folder, or an address as KServe has them
(s3://bucket/path), with KServe's environment for credentials.`,
		Example: `  sealctl model seal granite-3 sealed/granite-3 --new-key granite.key --public 'tokenizer*'
  aws s3 sync sealed/granite-3 s3://models/granite-3
  sealctl model key s3://models/granite-3 --key-file granite.key --out granite.jwk
  sealctl kbs --kbs-token admin.token set-resource acme/models/granite-3 granite.jwk
  sealctl model verify s3://models/granite-3 --key-file granite.jwk`,
	}
	withSubcommands(cmd, modelSeal(), modelInspect(), modelVerify(), modelKey(), modelImage())
	return cmd
}

// readModelKey reads a key file. The caller wipes the key.
func readModelKey(path string) (*sealed.Key, error) {
	raw, err := podvm.ReadFileMax(path, sealed.MaxKey)
	if err != nil {
		return nil, absent(fmt.Errorf("reading the key: %w", err), "`sealctl model seal --new-key` makes one")
	}
	defer clear(raw)
	k, err := sealed.ParseKey(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w\nhint: it is the file of `sealctl model seal --new-key`, or of `sealctl model key`", path, err)
	}
	return k, nil
}

// openModel opens the model of the command line.
func openModel(cmd *cobra.Command, at string) (*model.Stored, error) {
	if !strings.Contains(at, "://") {
		abs, err := filepath.Abs(at)
		if err != nil {
			return nil, fmt.Errorf("finding the model: %w", err)
		}
		at = abs
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	s, err := model.OpenStored(cmd.Context(), at, podvm.Host{}, log)
	return s, hinted(err)
}

// hinted puts an error of a model in the words of the storage initializer, the hint
// on a line of its own. The exit code is sealctl's.
func hinted(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	_, line := model.Outcome(err)
	return errors.New(strings.Replace(line, "; hint: ", "\nhint: ", 1))
}

// pinOf is what a key says to name a stored manifest.
func pinOf(stored []byte) string {
	sum := sha256.Sum256(stored)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// counter shows how many bytes of a model are done.
type counter struct {
	done, total atomic.Int64
	view        *cli.View
}

// count shows on stderr what add is told, from total on and until stop.
func count(cmd *cobra.Command, doing string) *counter {
	c := &counter{view: cli.NewView(cmd.ErrOrStderr(), os.LookupEnv)}
	c.view.Show(func() (int, string) {
		done, total := c.done.Load(), c.total.Load()
		percent := 0
		if total > 0 {
			percent = int(min(100*float64(done)/float64(total), 100))
		}
		return percent, fmt.Sprintf("%3d%%  %s %s of %s", percent, doing, podvm.SizeText(done), podvm.SizeText(total))
	})
	return c
}

func (c *counter) add(n int64) { c.done.Add(n) }
func (c *counter) stop()       { c.view.Close() }
