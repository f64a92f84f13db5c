package server

import (
	"context"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/podvm"
)

// measured is a TEE whose init data digest the host set at launch.
type measured struct{ digest string }

func (measured) TEE() string                                               { return "measured" }
func (measured) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }
func (m measured) BindInitData(_ context.Context, digest []byte) error {
	if string(digest) != m.digest {
		return errors.New("digest differs from the one at launch")
	}
	return nil
}

func TestBindInitData(t *testing.T) {
	text := "algorithm = \"sha384\"\nversion = \"0.1.0\"\n"
	sum := sha512.Sum384([]byte(text))
	path := filepath.Join(t.TempDir(), "initdata.toml")
	write(t, path, text)
	b64 := base64.StdEncoding.EncodeToString(sum[:])
	tees := &attester.Set{Primary: measured{string(sum[:])}}
	for name, tt := range map[string]struct {
		tees         *attester.Set
		digest, path string
		doc          bool
		log          string
		err          string
	}{
		"none":                       {tees: tees},
		"digest":                     {tees: tees, digest: b64, log: "Init data is bound"},
		"document":                   {tees: tees, path: path, doc: true, log: "Init data is bound"},
		"document wins":              {tees: tees, path: path, digest: "AAAA", doc: true, log: "Init data is bound"},
		"digest differs":             {tees: tees, digest: "AAAA", err: "binding init data to measured"},
		"digest not base64":          {tees: tees, digest: "hunter2!", err: "not padded standard base64"},
		"digest not padded":          {tees: tees, digest: strings.TrimRight("AAAAAA==", "="), err: "not padded standard base64"},
		"document absent":            {tees: tees, path: path + "x", err: "reading init data"},
		"document not readable":      {tees: tees, path: filepath.Dir(path), err: "reading init data"},
		"sample is logged":           {tees: &attester.Set{Primary: sample.New()}, digest: b64, log: "level=WARN"},
		"sample keeps the plaintext": {tees: &attester.Set{Primary: sample.New()}, path: path, doc: true, log: "level=WARN"},
	} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			out, err := BindInitData(t.Context(), defaults(nil), tt.tees, podvm.Host{Root: t.TempDir()}, tt.digest, tt.path, slog.New(slog.NewTextHandler(&log, nil)))
			doc := out.Document
			if out.Recorded != nil {
				t.Errorf("recorded %x", out.Recorded)
			}
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) || doc != nil || strings.Contains(err.Error(), "hunter2") {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || (doc != nil) != tt.doc || tt.doc && doc.Text != text {
				t.Errorf("got %+v, %v", doc, err)
			}
			if !strings.Contains(log.String(), tt.log) {
				t.Errorf("log %q", log.String())
			}
		})
	}
}
