package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sealpod/sealpod/imageseal"
	"github.com/sealpod/sealpod/podvm"
)

// imageCommand is `sealctl image`: what an owner does to an image before pods
// may run it.
func imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image COMMAND",
		Short: "Encrypt, sign and inspect images",
		Long: `Encrypt the layers of an image, sign it, and see how it is protected.

An IMAGE is a registry reference (registry.example/app:1) or an OCI layout on
disk (oci:DIRECTORY[:TAG]). Credentials are those of docker login.`,
		Example: `  sealctl image keygen
  sealctl image encrypt registry.example/app:1 registry.example/app:1-sealed \
      --key-id kbs:///default/image-kek/app --kbs https://kbs.example --kbs-token admin.token
  sealctl image sign registry.example/app:1-sealed --key cosign.key
  sealctl image inspect registry.example/app:1-sealed --key cosign.pub`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(imageEncryptCommand(), imageSignCommand(), imageInspectCommand(), imageKeygenCommand())
	return cmd
}

// maxKeyFile caps the key, certificate and token files given on the command line.
const maxKeyFile = 1 << 20

// insecureFlag adds the flag every command that talks to a registry has.
func insecureFlag(cmd *cobra.Command, a *imageseal.Access) {
	cmd.Flags().BoolVar(&a.Insecure, "insecure", false, "allow plain HTTP and unverified certificates")
}

// printJSON writes v to the command's output, indented.
func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("writing the result: %w", err)
	}
	return nil
}

// terminal reports whether w is a terminal, where progress may be shown.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func imageInspectCommand() *cobra.Command {
	var o imageseal.InspectOptions
	var keys []string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show how an image is protected",
		Long: `Show which layers of an image are encrypted, under which keys, and who signed it.

With --key every signature is checked by the rules a pod applies; the command
fails unless each key given has signed the image.`,
		Example: `  sealctl image inspect registry.example/app:1
  sealctl image inspect oci:./layout:1 --key cosign.pub --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Image, o.Keys = args[0], map[string][]byte{}
			for _, path := range keys {
				b, err := podvm.ReadFileMax(path, maxKeyFile)
				if err != nil {
					return fmt.Errorf("reading the public key: %w", err)
				}
				o.Keys[path] = b
			}
			r, err := imageseal.Inspect(cmd.Context(), o)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(cmd, r)
			} else {
				err = printReport(cmd.OutOrStdout(), r, len(keys) > 0)
			}
			if err != nil {
				return err
			}
			return unsignedBy(r, keys)
		},
	}
	cmd.Flags().StringArrayVar(&keys, "key", nil, "PEM public key `file` to verify with (repeat for several)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the report as JSON")
	insecureFlag(cmd, &o.Access)
	return cmd
}

// unsignedBy returns an error for the first key that verified nothing.
func unsignedBy(r imageseal.Report, keys []string) error {
	verified := map[string]bool{}
	for _, s := range r.Signatures {
		for _, k := range s.VerifiedBy {
			verified[k] = true
		}
	}
	for _, k := range keys {
		if !verified[k] {
			return fmt.Errorf("no signature of %s is by %s; sign it with `sealctl image sign`", r.Digest, k)
		}
	}
	return nil
}

// printReport writes r as a table for people. verified says that signatures
// were checked with a key.
func printReport(out io.Writer, r imageseal.Report, verified bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\n%s\n", r.Image, r.Digest)
	for _, img := range r.Images {
		fmt.Fprintf(w, "\n%s  %s\n", orUnknown(img.Platform), img.Digest)
		fmt.Fprintf(w, "LAYER\tSIZE\tENCRYPTED\tKEY\tWRAP\tMEDIA TYPE\n")
		for i, l := range img.Layers {
			encrypted := "no"
			if l.Encrypted {
				encrypted = "yes"
			}
			if len(l.Packets) == 0 {
				fmt.Fprintf(w, "%d\t%s\t%s\t-\t-\t%s\n", i, podvm.SizeText(l.SizeBytes), encrypted, l.MediaType)
			}
			for n, p := range l.Packets {
				key := p.KeyID
				if key == "" {
					key = "(" + p.Scheme + ")"
				}
				if n == 0 {
					fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\n", i, podvm.SizeText(l.SizeBytes), encrypted, key, orDash(p.WrapType), l.MediaType)
				} else {
					fmt.Fprintf(w, "\t\t\t%s\t%s\t\n", key, orDash(p.WrapType))
				}
			}
		}
	}
	fmt.Fprintln(w)
	for _, s := range r.Signatures {
		by := "not checked, give --key"
		if verified {
			by = "by none of the keys given"
		}
		if len(s.VerifiedBy) > 0 {
			by = "verified with " + fmt.Sprint(s.VerifiedBy)
		}
		fmt.Fprintf(w, "signature for %s: %s\n", orUnknown(s.Identity), by)
	}
	if len(r.Signatures) == 0 {
		fmt.Fprintln(w, "not signed")
	}
	if r.Bundle {
		fmt.Fprintln(w, "there is a Sigstore bundle too, not checked here: pods read it unless their policy has signedIdentity, which it cannot satisfy")
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orUnknown(s string) string {
	if s == "" {
		return "(unknown)"
	}
	return s
}
