package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/secret/seal"
	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
)

// secretCommand is "sealctl secret", upstream's program "secret".
// Source: guest-components confidential-data-hub/hub/src/bin/secret_cli.rs at
// 8246e5e.
func secretCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "secret COMMAND",
		Short: "Seal secrets for pods, and unseal them",
		Long: `A sealed secret is a text that may pass through hosts nobody trusts, as the value
of an environment variable or in a Kubernetes secret; the pod's data hub unseals
it. It names a secret in a vault (vault), or holds one under a key of a key
management service (envelope). It is signed, so that only its owner can make one.

Command lines, files, outputs and exit codes are those of upstream's program
"secret": 0 done, 2 wrong usage, 101 failed.`,
		Example: `  sealctl secret keygen --kid signing
  sealctl kbs --kbs-token admin.token set-resource acme/keys/signing signing-public.json

  # A secret that the key broker holds
  sealctl secret seal --signing-kid kbs:///acme/keys/signing --signing-jwk-path signing-private.json \
      vault --resource-uri kbs:///acme/db/password --provider kbs

  # A secret under a key of AWS KMS
  sealctl secret seal --signing-kid kbs:///acme/keys/signing --signing-jwk-path signing-private.json \
      envelope --key-id alias/acme --file-path password.txt aws --region eu-west-1 --credential-file-path aws.json

  sealctl secret unseal --file-path sealed.txt --aa-kbc-params cc_kbc::https://kbs.example`,
	}
	withSubcommands(cmd, secretKeygen(), secretSeal(), secretUnseal())
	return cli.Upstream("sealctl secret", cmd)
}

// withSubcommands makes cmd a command that does nothing without one of them.
func withSubcommands(cmd *cobra.Command, subs ...*cobra.Command) {
	names := make([]string, 0, len(subs))
	for _, s := range subs {
		names = append(names, s.Name())
		if s.RunE != nil && s.Args == nil {
			s.Args = cobra.NoArgs
		}
	}
	cmd.AddCommand(subs...)
	cmd.Args = cobra.ArbitraryArgs
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		want := strings.Join(names, ", ")
		if len(args) > 0 {
			return fmt.Errorf("unknown subcommand %q: want one of %s (%w)", podvm.Printable(args[0], 64), want, cli.ErrUsage)
		}
		return fmt.Errorf("a subcommand is missing: one of %s (%w)", want, cli.ErrUsage)
	}
}

// missing is the error for the first flag without a value, or nil.
func missing(flags ...string) error {
	for i := 0; i+1 < len(flags); i += 2 {
		if flags[i+1] == "" {
			return fmt.Errorf("--%s is missing (%w)", flags[i], cli.ErrUsage)
		}
	}
	return nil
}

// secretKeygen is "sealctl secret keygen".
func secretKeygen() *cobra.Command {
	var kid, dir string
	cmd := &cobra.Command{
		Use:   "keygen",
		Short: "Make a key that signs sealed secrets",
		Long: `Writes KID-private.json and KID-public.json, both halves of a P-256 key as JWK.
Neither may exist yet. Place the public half where guests find it, at a key
broker, and name that place when sealing.`,
		Example: `  sealctl secret keygen --kid signing --output-dir keys
  sealctl kbs --kbs-token admin.token set-resource acme/keys/signing keys/signing-public.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			private, public, err := generate(dir, kid)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Generated %s and %s\n", private, public)
			return err
		},
	}
	cmd.Flags().StringVar(&kid, "kid", "sealed-signing", "`name` of the key and its files")
	cmd.Flags().StringVar(&dir, "output-dir", ".", "`directory` to write the files to")
	return cmd
}

// generate writes both halves of a key, or none, and returns where they are.
func generate(dir, kid string) (private, public string, err error) {
	if kid == "" || strings.Contains(kid, "/") {
		return "", "", fmt.Errorf("--kid %q cannot be the name of a file\nhint: a resource URI goes to `seal --signing-kid`, the key's name may be any", podvm.Printable(kid, 200))
	}
	private, public = join(dir, kid+"-private.json"), join(dir, kid+"-public.json")
	for _, path := range []string{private, public} {
		if _, err := os.Lstat(path); err == nil {
			return "", "", fmt.Errorf("%s exists already\nhint: secrets sealed with it would be lost: choose another --kid or --output-dir", path)
		}
	}
	key, jwk, err := seal.NewKey(kid)
	if err != nil {
		return "", "", err
	}
	defer key.Wipe()
	if err := writeNew(private, key, 0o600); err != nil {
		return "", "", absent(err, "--output-dir has to exist")
	}
	if err := writeNew(public, jwk, 0o644); err != nil {
		return "", "", errors.Join(err, os.Remove(private))
	}
	return private, public, nil
}

// join is filepath.Join without its tidying, as upstream prints paths.
func join(dir, name string) string {
	if dir == "" || strings.HasSuffix(dir, "/") {
		return dir + name
	}
	return dir + "/" + name
}

// absent adds a hint to an error about something that is not there.
func absent(err error, hint string) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w\nhint: %s", err, hint)
	}
	return err
}
