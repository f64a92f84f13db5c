package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/kbs/admin"
	"github.com/sealpod/sealpod/podvm"
)

// kbsFlags are the flags that say which KBS an administrator talks to.
type kbsFlags struct{ url, ca, token string }

func (f *kbsFlags) add(cmd *cobra.Command, url string) {
	fl := cmd.PersistentFlags()
	fl.StringVar(&f.url, "kbs", url, "`URL` of the key broker")
	fl.StringVar(&f.ca, "kbs-ca", "", "PEM `file` of certificates to trust for --kbs")
	fl.StringVar(&f.token, "kbs-token", "", "`file` with the administrator's token for --kbs")
}

// client returns the administrator's client.
func (f *kbsFlags) client() (*admin.Client, error) {
	var ca []byte
	var token podvm.Secret
	var err error
	if f.ca != "" {
		if ca, err = podvm.ReadFileMax(f.ca, maxKeyFile); err != nil {
			return nil, fmt.Errorf("reading the KBS certificate: %w", err)
		}
	}
	if f.token != "" {
		b, err := podvm.ReadFileMax(f.token, maxKeyFile)
		if err != nil {
			return nil, fmt.Errorf("reading the KBS token: %w", err)
		}
		token = podvm.Secret(bytes.TrimSpace(b))
	}
	c, err := admin.New(f.url, ca, token)
	if err != nil {
		return nil, fmt.Errorf("reaching the KBS: %w", err)
	}
	return c, nil
}

// maxUpload caps a resource or policy; a KBS takes 2 MB by default.
const maxUpload = 2 << 20

// kbsCommand is "sealctl kbs".
func kbsCommand() *cobra.Command {
	var f kbsFlags
	root := &cobra.Command{
		Use:   "kbs COMMAND",
		Short: "Place resources, policies and reference values at a relying party",
		Long: `Administer a relying party: this program's own, or Trustee's KBS. A FILE may be
"-" for standard input.`,
		Example: `  sealctl kbs --kbs-token admin.token set-resource acme/db/password password.txt
  sealctl kbs --kbs-token admin.token set-resource-policy allow.rego
  echo '{"launch_digest":["abcde"]}' | sealctl kbs --kbs-token admin.token set-reference-values -`,
		Args: cobra.NoArgs,
	}
	f.add(root, "http://127.0.0.1:8080")
	// upload adds a command whose last argument is the file it sends.
	upload := func(use, short string, args int, send func(cmd *cobra.Command, c *admin.Client, args []string, body []byte) error) {
		root.AddCommand(&cobra.Command{
			Use: use, Short: short, Args: cobra.ExactArgs(args),
			RunE: func(cmd *cobra.Command, args []string) error {
				body, err := readUpload(cmd.InOrStdin(), args[len(args)-1])
				if err != nil {
					return err
				}
				defer clear(body)
				c, err := f.client()
				if err != nil {
					return err
				}
				defer c.Close()
				return send(cmd, c, args, body)
			},
		})
	}
	upload("set-resource REPOSITORY/TYPE/TAG FILE", "Place a resource", 2,
		func(cmd *cobra.Command, c *admin.Client, args []string, body []byte) error {
			return c.SetResource(cmd.Context(), args[0], body)
		})
	upload("set-resource-policy FILE", "Replace the Rego policy that releases resources", 1,
		func(cmd *cobra.Command, c *admin.Client, _ []string, body []byte) error {
			return c.SetResourcePolicy(cmd.Context(), string(body))
		})
	upload("set-attestation-policy ID FILE", "Replace a Rego policy that appraises evidence, as default_cpu", 2,
		func(cmd *cobra.Command, c *admin.Client, args []string, body []byte) error {
			return c.SetAttestationPolicy(cmd.Context(), args[0], string(body))
		})
	upload("set-reference-values FILE", "Register what good evidence says: a JSON object, name to value", 1,
		func(cmd *cobra.Command, c *admin.Client, _ []string, body []byte) error {
			var values map[string]any
			d := json.NewDecoder(bytes.NewReader(body))
			d.UseNumber()
			if err := d.Decode(&values); err != nil {
				return fmt.Errorf("reading the reference values: want a JSON object: %w", err)
			}
			return c.SetReferenceValues(cmd.Context(), values)
		})
	root.AddCommand(&cobra.Command{
		Use: "delete-resource REPOSITORY/TYPE/TAG", Short: "Remove a resource", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			defer c.Close()
			return c.DeleteResource(cmd.Context(), args[0])
		},
	}, &cobra.Command{
		Use: "list-resources", Short: "List the paths of all resources", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.client()
			if err != nil {
				return err
			}
			defer c.Close()
			paths, err := c.ListResources(cmd.Context())
			for _, p := range paths {
				fmt.Fprintln(cmd.OutOrStdout(), p)
			}
			return err
		},
	})
	return root
}

// readUpload reads a file, or standard input for "-".
func readUpload(stdin io.Reader, path string) ([]byte, error) {
	if path == "-" {
		b, err := podvm.ReadMax(stdin, maxUpload)
		if err != nil {
			return nil, fmt.Errorf("reading standard input: %w", err)
		}
		return b, nil
	}
	return podvm.ReadFileMax(path, maxUpload)
}
