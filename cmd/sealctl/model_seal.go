package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/model"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/sealed/seal"
	"github.com/sealpod/sealpod/podvm"
)

// modelSealFlags is the command line of "sealctl model seal".
type modelSealFlags struct {
	key, newKey, name string
	public, exclude   []string
	json              bool
}

func modelSeal() *cobra.Command {
	var f modelSealFlags
	cmd := &cobra.Command{
		Use:   "seal SRC DST",
		Short: "Encrypt a model's folder into another folder",
		Long: `Encrypts every file of the folder SRC into the folder DST, which is made and may hold
nothing yet, and closes the set with a manifest. Upload DST as it is. Names of files
stay readable, contents do not; files that match --public stay readable too and are
protected from change only.

PATTERN stands for a path: * for any text, slashes included, ? for a character,
[abc] for one of some.`,
		Example: `  sealctl model seal granite-3 sealed/granite-3 --new-key granite.key
  sealctl model seal granite-3 sealed/granite-3.1 --key-file granite.key --public 'tokenizer*' --exclude '.git/*'`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error { return f.run(cmd, args[0], args[1]) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.key, "key-file", "", "`file` with the model's key")
	fl.StringVar(&f.newKey, "new-key", "", "make a key and write it to this `file`, which must not exist")
	fl.StringVar(&f.name, "name", "", "the model's `name` in the manifest; the folder's by default")
	fl.StringArrayVar(&f.public, "public", nil, "`pattern` of files that stay readable (repeat for several)")
	fl.StringArrayVar(&f.exclude, "exclude", nil, "`pattern` of files that are left out (repeat for several)")
	fl.BoolVar(&f.json, "json", false, "print the result as JSON")
	return cmd
}

func (f *modelSealFlags) run(cmd *cobra.Command, src, dst string) error {
	if (f.key == "") == (f.newKey == "") {
		return fmt.Errorf("want one of --key-file and --new-key (%w)", cli.ErrUsage)
	}
	if st, err := os.Stat(src); err != nil || !st.IsDir() {
		return fmt.Errorf("%s is not a folder\nhint: SRC is the folder with the files of the model", src)
	}
	if f.name == "" {
		abs, err := filepath.Abs(src)
		if err != nil {
			return fmt.Errorf("naming the model: %w", err)
		}
		f.name = filepath.Base(abs)
	}
	if f.newKey != "" {
		raw := seal.NewKey()
		defer raw.Wipe()
		text := append(base64.RawURLEncoding.AppendEncode(nil, raw), '\n')
		defer clear(text)
		if err := writeNew(f.newKey, text, 0o600); err != nil {
			if errors.Is(err, fs.ErrExist) {
				err = fmt.Errorf("%w\nhint: what was sealed under the key in it would be lost: use it with --key-file, or choose another file", err)
			}
			return err
		}
		f.key = f.newKey
	}
	k, err := readModelKey(f.key)
	if err != nil {
		return err
	}
	defer k.Wipe()
	c := count(cmd, "sealed")
	defer c.stop()
	m, pin, err := seal.Model(cmd.Context(), k, src, dst, seal.Options{
		Name: f.name, Public: model.Patterns(f.public).Match, Exclude: model.Patterns(f.exclude).Match,
		Progress: c.add, Plan: func(m *sealed.Manifest) { c.total.Store(m.Total()) },
	})
	c.stop()
	if errors.Is(err, seal.ErrNotEmpty) {
		return fmt.Errorf("%w\nhint: a sealed model is made anew each time: choose another DST", err)
	}
	if err != nil {
		return err
	}
	return f.print(cmd, m, dst, pin)
}

func (f *modelSealFlags) print(cmd *cobra.Command, m *sealed.Manifest, dst, pin string) error {
	public := 0
	for _, file := range m.Files {
		if !file.Sealed {
			public++
		}
	}
	if f.json {
		return printJSON(cmd, struct {
			ID     string `json:"id"`
			Name   string `json:"name"`
			Pin    string `json:"manifest"`
			Files  int    `json:"files"`
			Public int    `json:"public"`
			Bytes  int64  `json:"bytes"`
		}{m.ID, m.Name, pin, len(m.Files), public, m.Total()})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), `%s: %d files, %s, %d of them readable
manifest %s
next: upload %s, then place the key with this version's name in it:
  sealctl model key %s --key-file %s --out model.jwk
`, m.Name, len(m.Files), podvm.SizeText(m.Total()), public, pin, dst, dst, f.key)
	return err
}
