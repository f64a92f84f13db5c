package registry

import (
	"bytes"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

func TestParseReferrers(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	bundle := `{"mediaType":"` + typeOCIManifest + `","artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json","digest":"` + digest + `","size":7}`
	other := `{"mediaType":"` + typeOCIManifest + `","artifactType":"application/spdx+json","digest":"` + digest + `","size":7}`
	index := func(entries ...string) string {
		return `{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[` + strings.Join(entries, ",") + `]}`
	}
	for name, tt := range map[string]struct {
		text string
		want int
		ok   bool
	}{
		"none":                       {index(), 0, true},
		"one among others":           {index(other, bundle, other), 1, true},
		"without a type":             {index(`{"digest":"` + digest + `","size":7}`), 0, true},
		"too many entries":           {index(strings.Repeat(other+",", maxInstances) + bundle), 0, false},
		"a type that is no text":     {index(`{"artifactType":7}`), 0, false},
		"a manifest":                 {`{"schemaVersion":2,"mediaType":"` + typeOCIManifest + `","config":{},"layers":[]}`, 0, false},
		"an index without a list":    {`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `"}`, 0, false},
		"an index with another list": {`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":null}`, 0, false},
		"two lists":                  {`{"schemaVersion":2,"mediaType":"` + typeOCIIndex + `","manifests":[` + bundle + `],"manifests":[]}`, 0, true},
		"HTML":                       {"<html>", 0, false},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := parseReferrers([]byte(tt.text))
			if len(list) != tt.want || (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrManifest) {
				t.Errorf("%d, %v", len(list), err)
			}
		})
	}
}

func FuzzReferrers(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"artifactType":"application/vnd.dev.sigstore.bundle.v0.3+json","digest":"sha256:00"}]}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{}],"Manifests":[{},{}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseReferrers(raw)
		if err != nil && !errors.Is(err, ErrManifest) {
			t.Fatal(err)
		}
		if len(list) > 0 && !bytes.Contains(raw, []byte("bundle")) && !bytes.Contains(raw, []byte(`\u`)) {
			t.Fatalf("%d in %q", len(list), raw)
		}
	})
}

func TestFetch(t *testing.T) {
	var seen http.Header
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r.Header
		switch r.URL.Path {
		case "/ok@sha256=00/signature-1":
			_, _ = w.Write([]byte("good"))
		case "/big":
			_, _ = w.Write(make([]byte, 100))
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/ftp":
			w.Header().Set("Location", "ftp://x/y")
			w.WriteHeader(http.StatusFound)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	})
	for _, s := range []*httptest.Server{httptest.NewServer(handler), httptest.NewTLSServer(handler)} {
		t.Cleanup(s.Close)
		opts := Options{Backoff: time.Millisecond, Host: podvm.Host{LookupEnv: func(string) (string, bool) { return "", false }}}
		if s.TLS != nil {
			opts.Roots = []string{string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))}
		}
		c, err := NewClient(opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		at, err := url.Parse(s.URL)
		if err != nil {
			t.Fatal(err)
		}
		for path, want := range map[string]error{
			"/ok@sha256=00/signature-1": nil, "/big": podvm.ErrTooLarge, "/busy": ErrUnavailable, "/none": ErrNotFound, "/ftp": ErrUnavailable,
		} {
			at.Path = path
			raw, err := c.Fetch(t.Context(), at, 99)
			if !errors.Is(err, want) || want == nil && string(raw) != "good" || err != nil && podvm.Cause(err) == "" {
				t.Errorf("%s: %q, %v", at, raw, err)
			}
		}
		if seen.Get("Authorization") != "" {
			t.Error("credentials were sent")
		}
	}
}

func TestNextPage(t *testing.T) {
	for text, want := range map[string]string{
		`</v2/a/referrers/x?last=1&n=2>; rel="next"`:              "last=1&n=2",
		`<https://evil.test/v2/?token=%20x>;rel=next`:             "token=+x",
		`</a?b=1>; rel="prev", </a?c=2>; title="x"; rel = "Next"`: "c=2",
		`</a>; rel="next"`:        "",
		`</a?b=1>; rel="prev"`:    "none",
		`/a?b=1; rel="next"`:      "none",
		`</a?b=1>; rel="nextish"`: "none",
		"":                        "none",
	} {
		got, ok := nextPage(http.Header{"Link": {text}})
		if !ok {
			got = "none"
		}
		if got != want {
			t.Errorf("%s: %q", text, got)
		}
	}
}

// FuzzNextPage: whatever a link says, only a query comes of it.
func FuzzNextPage(f *testing.F) {
	f.Add(`</v2/a/referrers/x?last=1>; rel="next"`)
	f.Add(`<//evil.test/?a#b>;rel=next,<?%2f=/../&c;d>; rel=next`)
	f.Fuzz(func(t *testing.T, text string) {
		query, _ := nextPage(http.Header{"Link": {text}})
		u, err := url.Parse("http://registry.test/v2/a?" + query)
		if err != nil || u.Host != "registry.test" || u.Path != "/v2/a" || u.Fragment != "" || strings.ContainsAny(query, " \r\n") {
			t.Errorf("%q gives %q, %v", text, query, err)
		}
	})
}
