package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cdh/kms"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/cdh/secret"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// maxSealedFile caps a file with a sealed secret: the text, and space around it.
const maxSealedFile = 4<<20 + 1<<10

// unsealFlags is the command line of "sealctl secret unseal".
type unsealFlags struct {
	file, keys, broker string
	skip               bool
}

// secretUnseal is "sealctl secret unseal".
func secretUnseal() *cobra.Command {
	var f unsealFlags
	cmd := &cobra.Command{
		Use:   "unseal",
		Short: "Unseal a secret as a guest does",
		Long: `Unseals the secret in FILE, a text with nothing but space around it, and writes
it to FILE.unsealed, which may not exist yet.

With --aa-kbc-params cc_kbc::URL the key broker is asked, for the signing key as
well, with a token of the attestation agent of this machine (AA_SOCKET);
offline_fs_kbc:: reads the files of an image (OFFLINE_FS_KBC_EXTRA_FILE_PATH names
more of them). AA_KBC_PARAMS and KBS_CERT are read as in the guest.`,
		Example: `  sealctl secret unseal -f sealed.txt -a cc_kbc::https://kbs.example
  sealctl secret unseal -f sealed.txt -k ./kms-credentials        # the directory with credential.json
  sealctl secret unseal -f sealed.txt -s -a offline_fs_kbc::      # whoever signed it`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := missing("file-path", f.file); err != nil {
				return err
			}
			return f.run(cmd)
		},
	}
	fl := cmd.Flags()
	fl.StringVarP(&f.file, "file-path", "f", "", "`file` with the sealed secret (required)")
	fl.StringVarP(&f.keys, "key-path", "k", "", "`directory` with the credential files of aliyun, aws, azure or vault")
	fl.StringVarP(&f.broker, "aa-kbc-params", "a", "", "the key broker, `KBC::URL` (default $AA_KBC_PARAMS)")
	fl.BoolVarP(&f.skip, "skip-verification", "s", false, "do not check who signed it")
	return cmd
}

func (f *unsealFlags) run(cmd *cobra.Command) error {
	out := f.file + ".unsealed"
	if _, err := os.Lstat(out); err == nil {
		return fmt.Errorf("%s exists already", out)
	}
	text, err := podvm.ReadFileMax(f.file, maxSealedFile)
	if err != nil {
		return fmt.Errorf("reading the sealed secret: %w", err)
	}
	plain, err := f.unseal(cmd, bytes.TrimSpace(text))
	if err != nil {
		return err
	}
	defer plain.Wipe()
	if err := writeNew(out, plain, 0o600); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "unseal success, secret is saved in newly generated file: '%q'\n", out)
	return err
}

// unseal does it on this machine. The key broker is known before the signature
// is checked, for that may take a key of it; upstream's tool wants the broker in
// the environment for that.
func (f *unsealFlags) unseal(cmd *cobra.Command, text []byte) (podvm.Secret, error) {
	host := podvm.HostFromEnv()
	if f.keys != "" {
		host.LookupEnv = func(name string) (string, bool) {
			if strings.HasSuffix(name, "_IN_GUEST_KEY_PATH") {
				return f.keys, true
			}
			return os.LookupEnv(name)
		}
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	broker, err := f.open(host, log)
	if err != nil {
		return nil, err
	}
	defer broker.Close() //nolint:errcheck // the answer is here, or an error that says more
	services := kms.New(kms.Config{Host: host, Log: log})
	defer services.Close()
	plain, err := secret.New(secret.Config{Resources: broker, KMS: services, Host: host, SkipVerification: f.skip, Log: log}).Unseal(cmd.Context(), text)
	if err != nil {
		return nil, told(err)
	}
	return plain, nil
}

// told is what to tell of err: the sentence in it, and what to look at next.
func told(err error) error {
	text := podvm.Cause(err)
	if hint := unsealHint(err); hint != "" {
		text += "\nhint: " + hint
	}
	return errors.New(text)
}

// unsealHint says what to look at next.
func unsealHint(err error) string {
	switch {
	case errors.Is(err, errNoBroker):
		return "--aa-kbc-params KBC::URL says where the key broker is"
	case errors.Is(err, secret.ErrParse):
		return "the file holds one line, sealed.….….…, and none of what else `seal` prints"
	case errors.Is(err, secret.ErrSignature):
		return "place the public half of the key that signed it where its kid says"
	case errors.Is(err, kms.ErrCredential) && errors.Is(err, fs.ErrNotExist):
		return "--key-path names the directory with the provider's credential files"
	case errors.Is(err, resource.ErrInit):
		return "cc_kbc takes an attestation agent on this machine, at AA_SOCKET, and the URL of a key broker"
	}
	return ""
}

// errNoBroker says that a key broker is asked for and none was named.
var errNoBroker = errors.New("no key broker is named")

// noBroker is the broker nobody has named.
type noBroker struct{}

func (noBroker) Resource(context.Context, string) (podvm.Secret, error) {
	return nil, podvm.Explain(errNoBroker, errNoBroker.Error())
}

func (noBroker) Close() error { return nil }

// open returns the key broker the flags or the environment name.
func (f *unsealFlags) open(host podvm.Host, log *slog.Logger) (resource.Source, error) {
	from, params := "--aa-kbc-params", f.broker
	if params == "" {
		from, params = "AA_KBC_PARAMS", host.Getenv("AA_KBC_PARAMS")
	}
	if params == "" {
		return noBroker{}, nil
	}
	name, url, ok := strings.Cut(params, "::")
	if !ok {
		return nil, fmt.Errorf("%s is %q: want KBC::URL, such as cc_kbc::https://kbs.example", from, podvm.Printable(params, 200))
	}
	agent := host.Getenv("AA_SOCKET")
	if agent == "" {
		agent = "unix://" + podvm.AASocket
	}
	socket, err := rpc.SocketPath(agent)
	if err != nil {
		return nil, fmt.Errorf("AA_SOCKET: %w", err)
	}
	cfg := resource.Config{KBC: name, URL: url, CertPEM: []byte(host.Getenv("KBS_CERT")), AASocket: socket, Host: host, Log: log}
	for _, file := range strings.Split(host.Getenv("OFFLINE_FS_KBC_EXTRA_FILE_PATH"), ",") {
		if file = strings.TrimSpace(file); file != "" {
			cfg.ExtraFiles = append(cfg.ExtraFiles, file)
		}
	}
	return resource.New(cfg)
}
