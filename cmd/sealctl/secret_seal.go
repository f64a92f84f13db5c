package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/secret"
	"github.com/sealpod/sealpod/cdh/secret/seal"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// sealFlags is the command line of "sealctl secret seal" before the type.
type sealFlags struct{ kid, jwk string }

// secretSeal is "sealctl secret seal".
func secretSeal() *cobra.Command {
	var f sealFlags
	cmd := &cobra.Command{
		Use:   "seal",
		Short: "Print a sealed secret",
		Example: `  sealctl secret seal --signing-kid kbs:///acme/keys/signing --signing-jwk-path signing-private.json \
      vault --resource-uri kbs:///acme/db/password --provider kbs`,
	}
	fl := cmd.PersistentFlags()
	fl.StringVar(&f.kid, "signing-kid", "", "where guests find the public half of the signing key, `kbs:///repository/type/tag` (required)")
	fl.StringVar(&f.jwk, "signing-jwk-path", "", "`file` with the private half, of keygen (required)")
	withSubcommands(cmd, f.vault(), f.envelope())
	return cmd
}

// signer reads the signing key.
func (f *sealFlags) signer(cmd *cobra.Command) (seal.Signer, error) {
	if err := missing("signing-kid", f.kid, "signing-jwk-path", f.jwk); err != nil {
		return seal.Signer{}, err
	}
	raw, err := podvm.ReadFileMax(f.jwk, maxKeyFile)
	if err != nil {
		return seal.Signer{}, absent(fmt.Errorf("reading the signing key: %w", err), "`sealctl secret keygen` makes one")
	}
	defer clear(raw)
	key, err := seal.ParseKey(raw)
	if err != nil {
		return seal.Signer{}, fmt.Errorf("%s: %w\nhint: it is the file KID-private.json of `sealctl secret keygen`", f.jwk, err)
	}
	if _, err := kbs.ParseURI(f.kid); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "note: %q is no resource URI, so guests look for a file of that name in %s, where only their image can put one\n",
			podvm.Printable(f.kid, 200), secret.KeyDir)
	}
	return seal.Signer{Key: key, KeyID: f.kid}, nil
}

func (f *sealFlags) vault() *cobra.Command {
	var v seal.Vault
	var settings, annotations string
	cmd := &cobra.Command{
		Use:   "vault",
		Short: "Seal the name of a secret that a vault holds",
		Long: `Prints a warning that the secret has to be put there separately, then the sealed
secret on the last line. Nothing is looked up.`,
		Example: `  sealctl secret seal --signing-kid kbs:///acme/keys/signing --signing-jwk-path signing-private.json \
      vault -r kbs:///acme/db/password -p kbs | tail -n 1
  … vault -r prod/db/password -p aws --provider-settings '{"region":"eu-west-1"}' -a '{"version_stage":"AWSCURRENT"}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := missing("resource-uri", v.Name, "provider", v.Provider); err != nil {
				return err
			}
			if strings.EqualFold(v.Provider, "kbs") {
				if _, err := kbs.ParseURI(v.Name); err != nil {
					return fmt.Errorf("--resource-uri: %w\nhint: the provider kbs wants kbs:///repository/type/tag", err)
				}
			}
			v.Settings, v.Annotations = object(settings), object(annotations)
			s, err := f.signer(cmd)
			if err != nil {
				return err
			}
			text, err := v.Seal(s)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "Warning: Secrets must be provisioned to provider separately.\n%s\n", text)
			return err
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&v.Name, "resource-uri", "r", "", "the secret's `name`: a resource URI for kbs, else the provider's own (required)")
	fl.StringVarP(&v.Provider, "provider", "p", "", "`who` holds it: kbs, aliyun, aws, azure, vault (required)")
	fl.StringVar(&settings, "provider-settings", "", "how guests reach the provider, a `JSON` object")
	fl.StringVarP(&annotations, "annotations", "a", "", "what else the provider needs, a `JSON` object")
	return cmd
}

// object is a flag's JSON, nil when it was not given.
func object(text string) json.RawMessage {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

// envelopeFlags is the command line of "seal envelope" before the provider.
type envelopeFlags struct {
	*sealFlags
	keyID, file string
}

func (f *sealFlags) envelope() *cobra.Command {
	e := envelopeFlags{sealFlags: f}
	cmd := &cobra.Command{
		Use:   "envelope",
		Short: "Seal a secret under a key of a key management service",
		Long: `Encrypts the file under a fresh key, has the service encrypt that key, and prints
the sealed secret. Guests need credentials of their own for the service.`,
		Example: `  sealctl secret seal --signing-kid kbs:///acme/keys/signing --signing-jwk-path signing-private.json \
      envelope -k alias/acme -f password.txt aws -r eu-west-1 -c aws.json`,
	}
	fl := cmd.Flags()
	fl.StringVarP(&e.keyID, "key-id", "k", "", "the service's `name` of its key (required)")
	fl.StringVarP(&e.file, "file-path", "f", "", "`file` with the secret (required)")
	withSubcommands(cmd, e.ali(), e.aws(), e.azure(), e.hashicorp())
	return cmd
}

// encrypt has a service encrypt a key with the key keyID.
type encrypt func(ctx context.Context, env kms.Env, keyID string, key podvm.Secret) (kms.Wrapped, error)

// run seals the file and prints the result.
func (e *envelopeFlags) run(cmd *cobra.Command, provider string, with encrypt) error {
	if err := missing("key-id", e.keyID, "file-path", e.file); err != nil {
		return err
	}
	s, err := e.signer(cmd)
	if err != nil {
		return err
	}
	raw, err := podvm.ReadFileMax(e.file, seal.MaxEnvelope)
	if err != nil {
		return fmt.Errorf("reading the secret: %w", err)
	}
	plain := podvm.Secret(raw)
	defer plain.Wipe()
	env, done := kms.OwnerEnv(kms.Config{Host: podvm.HostFromEnv()})
	defer done()
	text, err := seal.Envelope{KeyID: e.keyID, Provider: provider, Encrypt: func(ctx context.Context, keyID string, key podvm.Secret) ([]byte, json.RawMessage, json.RawMessage, error) {
		w, err := with(ctx, env, keyID, key)
		if err != nil {
			return nil, nil, nil, err
		}
		settings, err := json.Marshal(w.Settings)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("encoding the provider settings: %w", err)
		}
		annotations, err := json.Marshal(w.Annotations)
		if err != nil {
			return nil, nil, nil, fmt.Errorf("encoding the annotations: %w", err)
		}
		return w.Ciphertext, settings, annotations, nil
	}}.Seal(cmd.Context(), s, plain)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}
