package main

import (
	"bytes"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/kms/aliyun"
	"github.com/sealpod/sealpod/cdh/kms/aws"
	"github.com/sealpod/sealpod/cdh/kms/azure"
	"github.com/sealpod/sealpod/cdh/kms/vault"
	"github.com/sealpod/sealpod/podvm"
)

func (e *envelopeFlags) ali() *cobra.Command {
	var o aliyun.Owner
	var clientKey, password, ca string
	cmd := &cobra.Command{
		Use: "ali", Short: "Under a key of Alibaba Cloud KMS",
		Example: `  … envelope -k key-hzz6xxxxxx -f password.txt ali -k kst-bjj6xxxxxx \
      --client-key-file-path clientKey_KAAP.json -p password_KAAP.json --cert-path PrivateKmsCA_kst-bjj6xxxxxx.pem`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := missing("kms-instance-id", o.InstanceID); err != nil {
				return err
			}
			files, err := credentials("client-key-file-path", clientKey, "password-file-path", password, "cert-path", ca)
			if err != nil {
				return err
			}
			o.ClientKey, o.Password, o.CA = files[0], files[1], files[2]
			return e.run(cmd, "aliyun", func(ctx context.Context, env kms.Env, keyID string, key podvm.Secret) (kms.Wrapped, error) {
				return aliyun.Encrypt(ctx, env, o, keyID, key)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.InstanceID, "kms-instance-id", "k", "", "`id` of the KMS instance (required)")
	fl.StringVar(&clientKey, "client-key-file-path", "", "`file` with the client key (required)")
	fl.StringVarP(&password, "password-file-path", "p", "", "`file` with the password of the client key (required)")
	fl.StringVar(&ca, "cert-path", "", "`file` with the CA certificate of the instance, PEM (required)")
	return cmd
}

func (e *envelopeFlags) aws() *cobra.Command {
	var o aws.Owner
	var file string
	var with map[string]string
	cmd := &cobra.Command{
		Use: "aws", Short: "Under a key of AWS KMS",
		Long: `The credential file is a JSON object with access_key_id, secret_access_key and,
for temporary credentials, session_token.`,
		Example: `  … envelope -k alias/acme -f password.txt aws -r eu-west-1 -c aws.json --encryption-context app=web`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := missing("region", o.Region); err != nil {
				return err
			}
			files, err := credentials("credential-file-path", file)
			if err != nil {
				return err
			}
			o.Credential = files[0]
			return e.run(cmd, "aws", func(ctx context.Context, env kms.Env, keyID string, key podvm.Secret) (kms.Wrapped, error) {
				return aws.Encrypt(ctx, env, o, keyID, key, with)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&o.Region, "region", "r", "", "`region` of the key, as in eu-west-1 (required)")
	fl.StringVarP(&file, "credential-file-path", "c", "", "`file` with credentials (required)")
	fl.StringToStringVar(&with, "encryption-context", nil, "`name=value` that KMS ties to the key and logs (repeat for several)")
	return cmd
}

func (e *envelopeFlags) azure() *cobra.Command {
	var o azure.Owner
	var token string
	cmd := &cobra.Command{
		Use: "azure", Short: "Under a key of Azure Key Vault or a Managed HSM",
		Example: `  az account get-access-token --resource https://vault.azure.net --query accessToken --output tsv > token
  … envelope -k acme/0123456789abcdef0123456789abcdef -f password.txt azure --vault-url https://acme.vault.azure.net --token-file-path token`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := missing("vault-url", o.VaultURL); err != nil {
				return err
			}
			files, err := credentials("token-file-path", token)
			if err != nil {
				return err
			}
			o.Token = bytes.TrimSpace(files[0])
			return e.run(cmd, "azure", func(ctx context.Context, env kms.Env, keyID string, key podvm.Secret) (kms.Wrapped, error) {
				return azure.Encrypt(ctx, env, o, keyID, key)
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&o.VaultURL, "vault-url", "", "the vault's `URL`, as in https://acme.vault.azure.net (required)")
	fl.StringVar(&token, "token-file-path", "", "`file` with an access token for the vault (required)")
	fl.StringVar(&o.Algorithm, "algorithm", "RSA-OAEP-256", "how the key wraps: RSA-OAEP-256, or A256KW in a Managed HSM")
	fl.StringVar(&o.ClientType, "client-type", "managed_identity", "how guests log in: managed_identity or client_secret")
	fl.StringVar(&o.ClientID, "client-id", "", "`id` of the identity guests use, where they have several")
	return cmd
}

// hashicorp is "envelope vault", which has nothing to do with "seal vault".
func (e *envelopeFlags) hashicorp() *cobra.Command {
	var o vault.Owner
	var file, derive string
	cmd := &cobra.Command{
		Use: "vault", Short: "Under a transit key of HashiCorp Vault",
		Long: `The credential file is a JSON object with address and token, or role_id and
secret_id of an AppRole, and, where needed, ca, namespace and approle_mount.`,
		Example: `  … envelope -k acme -f password.txt vault -c vault.json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			files, err := credentials("credential-file-path", file)
			if err != nil {
				return err
			}
			o.Credential = files[0]
			return e.run(cmd, "vault", func(ctx context.Context, env kms.Env, keyID string, key podvm.Secret) (kms.Wrapped, error) {
				return vault.Encrypt(ctx, env, o, keyID, key, []byte(derive))
			})
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&file, "credential-file-path", "c", "", "`file` with credentials (required)")
	fl.StringVar(&o.Mount, "mount", "", "`path` of the transit engine (default transit)")
	fl.StringVar(&o.Namespace, "namespace", "", "`path` of the namespace, if there is one")
	fl.StringVar(&derive, "derive", "", "`context` of a derived key")
	return cmd
}

// credentials reads the files that flags name, given as name and value in turn.
func credentials(flags ...string) ([][]byte, error) {
	if err := missing(flags...); err != nil {
		return nil, err
	}
	var out [][]byte
	for i := 0; i+1 < len(flags); i += 2 {
		b, err := podvm.ReadFileMax(flags[i+1], maxKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading --%s: %w", flags[i], err)
		}
		out = append(out, b)
	}
	return out, nil
}
