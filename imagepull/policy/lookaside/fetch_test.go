package lookaside

import (
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/imagepull/policy"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/podvm"
)

var (
	digestA = "sha256:" + strings.Repeat("a", 64)
	digestB = "sha256:" + strings.Repeat("b", 64)
	img     = policy.Image{Registry: "quay.io", Repository: "acme/app", Tag: "1", PlatformDigest: digestA, TopDigest: digestB}
)

func config(t *testing.T, store string) *Config {
	t.Helper()
	c, err := Parse([]byte("default-docker: {lookaside: \"" + store + "\"}"))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// answers is a web server in a map.
type answers map[string]string

func (a answers) Fetch(_ context.Context, at *url.URL, limit int64) ([]byte, error) {
	s, ok := a[at.String()]
	switch {
	case !ok:
		return nil, registry.ErrNotFound
	case int64(len(s)) > limit:
		return nil, podvm.ErrTooLarge
	}
	return []byte(s), nil
}

func TestSignaturesOfPlatformAndIndex(t *testing.T) {
	at := "https://sigs.example.com/x/acme/app@sha256=" + strings.Repeat("a", 64) + "/signature-"
	web := answers{
		at + "1": "one", at + "2": strings.Repeat("2", policy.MaxPayload+1), at + "3": "three", at + "5": "not reached",
		"https://sigs.example.com/x/acme/app@sha256=" + strings.Repeat("b", 64) + "/signature-1": "index",
	}
	docs, err := config(t, "https://sigs.example.com/x/").Signatures(t.Context(), img, web)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range docs {
		got = append(got, string(d.Raw))
	}
	if d := cmp.Diff([]string{"one", "", "three", "index"}, got); d != "" || docs[0].Origin != at+"1" {
		t.Errorf("%s %q", d, docs[0].Origin)
	}
}

func TestSignaturesInFiles(t *testing.T) {
	dir := t.TempDir()
	store := filepath.Join(dir, "acme", "app@sha256="+strings.Repeat("a", 64))
	if err := os.MkdirAll(store, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"signature-1", "signature-2", "signature-4"} {
		if err := os.WriteFile(filepath.Join(store, n), []byte(n), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	docs, err := config(t, "file://"+dir).Signatures(t.Context(), img, nil)
	if err != nil || len(docs) != 2 || string(docs[1].Raw) != "signature-2" {
		t.Errorf("%d, %v", len(docs), err)
	}
	if docs, err := config(t, "file:///nonexistent").Signatures(t.Context(), img, nil); err != nil || len(docs) != 0 {
		t.Errorf("no such store: %d, %v", len(docs), err)
	}
}

func TestSignaturesAreBounded(t *testing.T) {
	endless := fetcher(func(context.Context, *url.URL, int64) ([]byte, error) { return []byte("x"), nil })
	_, err := config(t, "https://a/b").Signatures(t.Context(), img, endless)
	if !errors.Is(err, podvm.ErrTooLarge) {
		t.Errorf("endless: %v", err)
	}
	slow := fetcher(func(ctx context.Context, _ *url.URL, _ int64) ([]byte, error) {
		if _, ok := ctx.Deadline(); !ok {
			t.Error("no deadline")
		}
		return nil, registry.ErrUnavailable
	})
	if _, err := config(t, "https://a/b").Signatures(t.Context(), img, slow); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("unavailable: %v", err)
	}
	if _, err := (&Config{}).Signatures(t.Context(), img, nil); !errors.Is(err, ErrNoStore) || podvm.Cause(err) == "" {
		t.Errorf("no store: %v", err)
	}
	for _, repo := range []string{"", "../x", "a/../../x", "a//b", "."} {
		evil := img
		evil.Repository = repo
		if docs, err := config(t, "file:///").Signatures(t.Context(), evil, nil); err == nil {
			t.Errorf("%q: %d", repo, len(docs))
		}
	}
}

type fetcher func(ctx context.Context, at *url.URL, limit int64) ([]byte, error)

func (f fetcher) Fetch(ctx context.Context, at *url.URL, limit int64) ([]byte, error) {
	return f(ctx, at, limit)
}
