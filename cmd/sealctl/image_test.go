package main

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sealpod/sealpod/cmd/internal/cli"
)

// plainLayout writes an image of two layers and returns its reference.
func plainLayout(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "plain")
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	for _, text := range []string{"base", "top"} {
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer([]byte(text), types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithPlatform(v1.Platform{OS: "linux", Architecture: "amd64"})); err != nil {
		t.Fatal(err)
	}
	return "oci:" + dir
}

// TestImageEncryptPlacesKeysInTheBroker runs the command against a key broker:
// every key arrives before the image exists, and a refusal leaves no image.
func TestImageEncryptPlacesKeysInTheBroker(t *testing.T) {
	for name, tt := range map[string]struct {
		status, code int
		paths        []string
	}{
		"accepted": {http.StatusOK, cli.ExitOK, []string{"/kbs/v0/resource/default/kek/app-0", "/kbs/v0/resource/default/kek/app-1"}},
		"refused":  {http.StatusUnauthorized, cli.ExitFailed, []string{"/kbs/v0/resource/default/kek/app-0"}},
	} {
		t.Run(name, func(t *testing.T) {
			src, dst := plainLayout(t), filepath.Join(t.TempDir(), "sealed")
			var paths []string
			bodies := map[string]bool{}
			broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				b, err := io.ReadAll(r.Body)
				if err != nil || len(b) != 32 || bodies[string(b)] {
					t.Errorf("a key of %d bytes, %v", len(b), err)
				}
				bodies[string(b)] = true
				paths = append(paths, r.URL.Path)
				if got := r.Header.Get("Authorization"); got != "Bearer the-token" {
					t.Errorf("authorization %q", got)
				}
				if _, err := os.Stat(dst); err == nil {
					t.Error("published before the keys were stored")
				}
				w.WriteHeader(tt.status)
			}))
			defer broker.Close()
			token := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(token, []byte("the-token\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			var stdout, stderr bytes.Buffer
			root := rootCommand()
			root.SetOut(&stdout)
			root.SetErr(&stderr)
			code := cli.Run(t.Context(), root, "sealctl", []string{
				"image", "encrypt", src, "oci:" + dst, "--key-id", "kbs:///default/kek/app",
				"--kek-per-layer", "--kbs", broker.URL, "--kbs-token", token,
			}, &stderr)
			if code != tt.code || strings.Join(paths, " ") != strings.Join(tt.paths, " ") {
				t.Errorf("code %d, paths %v\n%s%s", code, paths, &stdout, &stderr)
			}
			if strings.Contains(stdout.String()+stderr.String(), "the-token") {
				t.Error("the token was printed")
			}
			if _, err := os.Stat(dst); (err == nil) != (tt.code == cli.ExitOK) {
				t.Errorf("image: %v", err)
			}
		})
	}
}
