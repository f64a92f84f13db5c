package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/podvm"
)

// passwordEnv holds the password of a signing key, as cosign has it.
const passwordEnv = "COSIGN_PASSWORD"

func imageSignCommand() *cobra.Command {
	var o imageseal.SignOptions
	var key string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "sign IMAGE",
		Short: "Sign an image as cosign does",
		Long: `Sign the digest an image has now and put the signature beside it, in the tag
sha256-….sig where pods and cosign 2 look for it. Signatures that are there stay.

The key is cosign's (password in ` + passwordEnv + ` or asked for) or a plain PEM key.`,
		Example: `  sealctl image sign registry.example/app:1 --key cosign.key
  sealctl image sign oci:./layout:1 --key cosign.key --identity registry.example/app`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if key == "" {
				return fmt.Errorf("give --key FILE; `sealctl image keygen` makes one (%w)", cli.ErrUsage)
			}
			text, err := podvm.ReadFileMax(key, maxKeyFile)
			if err != nil {
				return fmt.Errorf("reading the signing key: %w", err)
			}
			defer clear(text)
			if o.Signer, err = imageseal.LoadSigner(text, askPassword); err != nil {
				return fmt.Errorf("loading %s: %w", key, err)
			}
			o.Image = args[0]
			res, err := imageseal.Sign(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, res)
			}
			state := "signed"
			if !res.Appended {
				state = "already signed with this key"
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s  %s as %s, in tag %s\n", res.Digest, state, res.Identity, res.Tag)
			return nil
		},
	}
	cmd.Flags().StringVar(&key, "key", "", "private key `file` (required)")
	cmd.Flags().StringVar(&o.Identity, "identity", "", "`registry/repository` to sign for (default the image's own)")
	cmd.Flags().StringToStringVarP(&o.Annotations, "annotation", "a", nil, "`name=value` to put into the signed payload (repeat for several)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	insecureFlag(cmd, &o.Access)
	return cmd
}

func imageKeygenCommand() *cobra.Command {
	var prefix string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a signing key pair",
		Long: `Make an ECDSA P-256 key pair in cosign's file format: PREFIX.key, encrypted with
a password (` + passwordEnv + ` or asked for), and PREFIX.pub for the image policy.`,
		Example: `  sealctl image keygen
  sealctl image keygen --output-key-prefix release`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			private, public := prefix+".key", prefix+".pub"
			for _, path := range []string{private, public} {
				if _, err := os.Lstat(path); err == nil {
					return fmt.Errorf("%s exists; choose another --output-key-prefix", path)
				}
			}
			pair, err := imageseal.GenerateKeyPair(askPassword)
			if err != nil {
				return err
			}
			defer pair.Private.Wipe()
			if err := writeNew(private, pair.Private, 0o600); err != nil {
				return err
			}
			if err := writeNew(public, pair.Public, 0o644); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd, map[string]string{"privateKeyFile": private, "publicKeyFile": public, "publicKey": string(pair.Public)})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s  keep this secret\n%s  put this into the image policy\n", private, public)
			return nil
		},
	}
	cmd.Flags().StringVar(&prefix, "output-key-prefix", "cosign", "write `PREFIX`.key and PREFIX.pub")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the result as JSON")
	return cmd
}

// askPassword takes a key's password from the environment or the terminal; a
// fresh one is asked for twice.
func askPassword(fresh bool) (podvm.Secret, error) {
	if p, ok := os.LookupEnv(passwordEnv); ok {
		return podvm.Secret(p), nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return nil, fmt.Errorf("no terminal to ask for the key's password; set %s", passwordEnv)
	}
	first, err := prompt("Password for the key: ")
	if err != nil || !fresh {
		return first, err
	}
	second, err := prompt("Again: ")
	defer second.Wipe()
	if err == nil && !bytes.Equal(first, second) {
		err = errors.New("the two passwords differ")
	}
	if err != nil {
		first.Wipe()
		return nil, err
	}
	return first, nil
}

func prompt(text string) (podvm.Secret, error) {
	fmt.Fprint(os.Stderr, text)
	p, err := term.ReadPassword(int(os.Stdin.Fd()))
	fmt.Fprintln(os.Stderr)
	if err != nil {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	return p, nil
}
