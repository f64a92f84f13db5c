package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
)

// encryptFlags are the flags of `image encrypt` that need work before they
// are options.
type encryptFlags struct {
	kekFile, kekOut string
	kbs             kbsFlags
	packets         string
	asJSON          bool
	options         imageseal.EncryptOptions
}

func imageEncryptCommand() *cobra.Command {
	var f encryptFlags
	cmd := &cobra.Command{
		Use:   "encrypt SOURCE DESTINATION",
		Short: "Encrypt the layers of an image",
		Long: `Copy an image with its layers encrypted. Every layer gets a key of its own,
wrapped by a key-encryption key (KEK) that pods fetch from a key broker after
attestation. The KEK goes to the broker (--kbs), to a file (--kek-out), or both,
before anything is published; or it comes from a file (--kek-file).`,
		Example: `  sealctl image encrypt registry.example/app:1 registry.example/app:1-sealed \
      --key-id kbs:///default/image-kek/app --kbs https://kbs.example --kbs-token admin.token

  # Offline: only the top layer, the key to ./keys/default/image-kek/app
  sealctl image encrypt oci:./plain:1 oci:./sealed:1 --layer -1 \
      --key-id kbs:///default/image-kek/app --kek-out ./keys`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.options.Source, f.options.Destination = args[0], args[1]
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.options.KeyID, "key-id", "", "resource the KEK will be, `kbs:///repository/type/tag` (required)")
	fl.IntSliceVar(&f.options.Layers, "layer", nil, "layer to encrypt, 0 the base, -1 the top (repeat for several; default all)")
	fl.StringArrayVar(&f.options.Platforms, "platform", nil, "keep only this `os/arch` of a multi-platform image (repeat for several; default all)")
	fl.BoolVar(&f.options.KeyPerLayer, "kek-per-layer", false, "a KEK for every layer, named KEY-ID-0, KEY-ID-1, …")
	fl.StringVar(&f.kekFile, "kek-file", "", "use the 32 bytes in this `file` as KEK instead of a fresh one")
	fl.StringVar(&f.kekOut, "kek-out", "", "write each KEK below this `directory`, as repository/type/tag")
	f.kbs.add(cmd, "")
	fl.StringVar(&f.packets, "packets", "v2", "form of the key packets: v2, v1 (old guests) or both")
	fl.BoolVar(&f.asJSON, "json", false, "print the result as JSON")
	insecureFlag(cmd, &f.options.Access)
	return cmd
}

func (f *encryptFlags) run(cmd *cobra.Command) error {
	switch {
	case f.options.KeyID == "":
		return fmt.Errorf("give --key-id kbs:///repository/type/tag (%w)", cli.ErrUsage)
	case f.kbs.url == "" && f.kekOut == "" && f.kekFile == "":
		return fmt.Errorf("nobody would keep the key: give --kbs, --kek-out or --kek-file (%w)", cli.ErrUsage)
	case f.kbs.url == "" && (f.kbs.ca != "" || f.kbs.token != ""):
		return fmt.Errorf("--kbs-ca and --kbs-token go with --kbs (%w)", cli.ErrUsage)
	case f.options.KeyPerLayer && f.kekFile != "":
		return fmt.Errorf("--kek-file is one key, --kek-per-layer wants several (%w)", cli.ErrUsage)
	}
	forms, ok := map[string]imageseal.Packets{"v2": imageseal.PacketsV2, "v1": imageseal.PacketsV1, "both": imageseal.PacketsBoth}[f.packets]
	if !ok {
		return fmt.Errorf("--packets %q: want v2, v1 or both (%w)", f.packets, cli.ErrUsage)
	}
	f.options.Packets = forms
	if f.kekFile != "" {
		kek, err := podvm.ReadFileMax(f.kekFile, maxKeyFile)
		if err != nil {
			return fmt.Errorf("reading the KEK: %w", err)
		}
		f.options.KEK = kek
		defer f.options.KEK.Wipe()
	}
	broker, err := f.broker()
	if err != nil {
		return err
	}
	if broker != nil {
		defer broker.Close()
	}
	f.options.StoreKey = func(ctx context.Context, k imageseal.Key) error { return f.store(ctx, broker, k) }
	if terminal(cmd.ErrOrStderr()) {
		f.options.Progress = func(s imageseal.Step) {
			fmt.Fprintf(cmd.ErrOrStderr(), "encrypting %s layer %d of %d, %s\n", s.Platform, s.Layer+1, s.Layers, podvm.SizeText(s.SizeBytes))
		}
	}
	res, err := imageseal.Encrypt(cmd.Context(), f.options)
	if err != nil {
		return err
	}
	for _, k := range res.Keys {
		defer k.KEK.Wipe()
	}
	return f.print(cmd, res)
}

func (f *encryptFlags) print(cmd *cobra.Command, res imageseal.EncryptResult) error {
	ids := make([]string, 0, len(res.Keys))
	for _, k := range res.Keys {
		ids = append(ids, k.ID)
	}
	if f.asJSON {
		return printJSON(cmd, struct {
			imageseal.EncryptResult
			Keys []string `json:"keys"`
		}{res, ids})
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s  %s\nencrypted layers: %d, under\n", res.Digest, f.options.Destination, res.Encrypted)
	for _, id := range ids {
		fmt.Fprintf(out, "  %s\n", id)
	}
	return nil
}

// broker returns the client for --kbs, nil without that flag.
func (f *encryptFlags) broker() (*admin.Client, error) {
	if f.kbs.url == "" {
		return nil, nil
	}
	return f.kbs.client()
}

// store puts a KEK wherever the flags say.
func (f *encryptFlags) store(ctx context.Context, broker *admin.Client, k imageseal.Key) error {
	uri, err := kbs.ParseURI(k.ID)
	if err != nil {
		return err
	}
	if f.kekOut != "" {
		if err := writeKEK(filepath.Join(f.kekOut, filepath.FromSlash(uri.Path())), k.KEK); err != nil {
			return err
		}
	}
	if broker != nil {
		return broker.SetResource(ctx, uri.Path(), k.KEK)
	}
	return nil
}

// writeKEK writes a key for its owner alone. Another key in its place would
// make older images unreadable, so that is refused.
func writeKEK(path string, kek podvm.Secret) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("creating the key directory: %w", err)
	}
	err := writeNew(path, kek, 0o600)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	old, rerr := podvm.ReadFileMax(path, maxKeyFile)
	if rerr != nil || !bytes.Equal(old, kek) {
		return fmt.Errorf("%s holds another key already; choose another --key-id or give it with --kek-file", path)
	}
	return nil
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, b []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("creating a key file: %w", err)
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}
