package main

import (
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/model"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/podvm"
)

func modelInspect() *cobra.Command {
	var key string
	var json bool
	cmd := &cobra.Command{
		Use:   "inspect MODEL",
		Short: "Show what is stored of a model, and with its key what it is",
		Long: `Without a key it shows what anybody can see: the objects, their sizes, and what a key
has to say to name this version. With --key-file it opens the manifest too and shows
the files. It does not read them; that is verify's part.`,
		Example: `  sealctl model inspect sealed/granite-3
  sealctl model inspect s3://models/granite-3 --key-file granite.key --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := openModel(cmd, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			r := modelReport{Source: s.String(), Objects: len(s.Objects)}
			for _, o := range s.Objects {
				r.Bytes += max(o.Size, 0)
			}
			if s.Manifest != nil {
				r.Pin = pinOf(s.Manifest)
			}
			if key != "" {
				k, err := readModelKey(key)
				if err != nil {
					return err
				}
				defer k.Wipe()
				if r.Manifest, err = s.OpenManifest(k); err != nil {
					return hinted(err)
				}
				r.Pinned = k.Pinned()
			}
			if json {
				return printJSON(cmd, r)
			}
			return r.print(cmd, s)
		},
	}
	cmd.Flags().StringVar(&key, "key-file", "", "`file` with the model's key")
	cmd.Flags().BoolVar(&json, "json", false, "print the report as JSON")
	return cmd
}

// modelReport is what inspect finds.
type modelReport struct {
	Source   string           `json:"source"`
	Objects  int              `json:"objects"`
	Bytes    int64            `json:"bytes"` // stored
	Pin      string           `json:"pin"`   // "" where there is no manifest
	Pinned   bool             `json:"pinned"`
	Manifest *sealed.Manifest `json:"manifest,omitempty"`
}

func (r modelReport) print(cmd *cobra.Command, s *model.Stored) error {
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "%s\n%d objects, %s\n", r.Source, r.Objects, podvm.SizeText(r.Bytes))
	if r.Pin == "" {
		fmt.Fprintf(out, "not sealed: there is no object %s\n", sealed.ManifestObject)
		return nil
	}
	fmt.Fprintf(out, "manifest %s\n", r.Pin)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if r.Manifest == nil {
		fmt.Fprintf(w, "\nOBJECT\tSIZE\n")
		for _, o := range s.Objects {
			fmt.Fprintf(w, "%s\t%s\n", o.Path, podvm.SizeText(o.Size))
		}
		return w.Flush()
	}
	m := r.Manifest
	fmt.Fprintf(out, "%q, sealed %s, id %s, %d files, %s\n", m.Name, m.Created.Format("2006-01-02 15:04:05 MST"), m.ID, len(m.Files), podvm.SizeText(m.Total()))
	if r.Pinned {
		fmt.Fprintln(out, "the key names this version and opens no other")
	} else {
		fmt.Fprintln(out, "the key names no version: with `sealctl model key` it would, and nobody could put an older one in its place")
	}
	fmt.Fprintf(w, "\nFILE\tSIZE\tMODE\tPROTECTION\n")
	for _, f := range m.Files {
		how := "sealed"
		if !f.Sealed {
			how = "readable, sha256:" + f.SHA256
		}
		fmt.Fprintf(w, "%s\t%s\t%04o\t%s\n", f.Path, podvm.SizeText(f.Size), f.Mode, how)
	}
	return w.Flush()
}

func modelVerify() *cobra.Command {
	var key string
	var json bool
	cmd := &cobra.Command{
		Use:   "verify MODEL",
		Short: "Read every byte of a sealed model and check it",
		Long: `Does what a pod would, but writes nothing: the manifest must be the one the key names,
if it names one, and every file must be there, whole and unchanged. Objects that the
manifest does not list are counted; a pod takes no notice of them.`,
		Example: `  sealctl model verify sealed/granite-3 --key-file granite.key
  sealctl model verify s3://models/granite-3 --key-file granite.jwk --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := missing("key-file", key); err != nil {
				return err
			}
			k, err := readModelKey(key)
			if err != nil {
				return err
			}
			defer k.Wipe()
			s, err := openModel(cmd, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			m, err := s.OpenManifest(k)
			if err != nil {
				return hinted(err)
			}
			c := count(cmd, "checked")
			defer c.stop()
			c.total.Store(m.Total())
			if err := s.Verify(cmd.Context(), k, m, c.add); err != nil {
				return hinted(err)
			}
			c.stop()
			extra := model.Unlisted(s.Objects, m)
			if json {
				return printJSON(cmd, struct {
					OK       bool   `json:"ok"`
					Name     string `json:"name"`
					Pin      string `json:"pin"`
					Pinned   bool   `json:"pinned"`
					Files    int    `json:"files"`
					Bytes    int64  `json:"bytes"`
					Unlisted int    `json:"unlisted"`
				}{true, m.Name, pinOf(s.Manifest), k.Pinned(), len(m.Files), m.Total(), extra})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%q is whole: %d files, %s, manifest %s\n", m.Name, len(m.Files), podvm.SizeText(m.Total()), pinOf(s.Manifest))
			if extra > 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "note: %d objects are not of the model; pods take no notice of them\n", extra)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&key, "key-file", "", "`file` with the model's key (required)")
	cmd.Flags().BoolVar(&json, "json", false, "print the result as JSON")
	return cmd
}

func modelKey() *cobra.Command {
	var key, out, id string
	cmd := &cobra.Command{
		Use:   "key MODEL",
		Short: "Print the key for a relying party, with this version's name in it",
		Long: `Prints the key as a JSON Web Key that names the manifest of MODEL: with it pods open
this version and no other, and refuse a store without a manifest. The line that
places it at the relying party goes to stderr.`,
		Example: `  sealctl model key sealed/granite-3 --key-file granite.key --out granite.jwk --id kbs:///acme/models/granite-3
  sealctl model key sealed/granite-3 --key-file granite.key | sealctl kbs --kbs-token admin.token set-resource acme/models/granite-3 -`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := missing("key-file", key); err != nil {
				return err
			}
			uri, err := kbs.ParseURI(id)
			if err != nil {
				return fmt.Errorf("--id: %w", err)
			}
			k, err := readModelKey(key)
			if err != nil {
				return err
			}
			defer k.Wipe()
			s, err := openModel(cmd, args[0])
			if err != nil {
				return err
			}
			defer s.Close()
			stored := s.Manifest
			unpinned, err := sealed.ParseKey(k.JWK(""))
			if err != nil {
				return err
			}
			defer unpinned.Wipe() // which may name another version
			if _, err := s.OpenManifest(unpinned); err != nil {
				return hinted(err)
			}
			jwk := append(k.JWK(pinOf(stored)), '\n')
			defer jwk.Wipe()
			file := "-"
			if out == "" {
				_, err = cmd.OutOrStdout().Write(jwk)
			} else {
				file = out
				err = writeNew(out, jwk, 0o600)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "next: sealctl kbs --kbs-token admin.token set-resource %s %s\nin the pod: CONFIDENTIAL_ENABLED=true CONFIDENTIAL_RESOURCE_ID=%s\n", uri.Path(), file, uri)
			return nil
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&key, "key-file", "", "`file` with the model's key (required)")
	fl.StringVar(&out, "out", "", "write the key to this `file`, which must not exist, and not to stdout")
	fl.StringVar(&id, "id", "kbs:///default/models/model", "where the key will be, `kbs:///repository/type/tag`")
	return cmd
}
