package azblob

import (
	"errors"
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/cloudtest"
	"github.com/sealpod/sealpod/podvm"
)

func TestAddressesAndSettings(t *testing.T) {
	for address, want := range map[string]string{
		"https://acme.blob.core.windows.net/models/m/":                           "https://acme.blob.core.windows.net/models/m",
		"https://ACME.blob.core.windows.net/models":                              "https://acme.blob.core.windows.net/models/",
		"https://acme.z12.blob.storage.azure.net/$web/a?sig=hunter2":             "https://acme.z12.blob.storage.azure.net/$web/a",
		"https://acme-secondary.blob.core.windows.net/models/m":                  "https://acme-secondary.blob.core.windows.net/models/m",
		"https://acme.blob.core.windows.net.evil.example/models/m":               "",
		"https://evil.example/.blob.core.windows.net/models/m":                   "",
		"https://acme.zx.blob.storage.azure.net/models/m":                        "",
		"https://acme.blob.core.windows.net/":                                    "",
		"https://acme.blob.core.windows.net/Models/m":                            "",
		"https://acme.blob.core.windows.net:444/models/m":                        "",
		"https://hunter2@acme.blob.core.windows.net/models/m":                    "",
		"http://acme.blob.core.windows.net/models/m":                             "",
		"https://a_c.blob.core.windows.net/models/m":                             "",
		"https://acme.blob.core.windows.net/models/" + strings.Repeat("x", 1025): "",
	} {
		s, err := New(address, cloudtest.Environ(t, "", nil, nil))
		if want == "" {
			if !errors.Is(err, source.ErrUsage) || podvm.Cause(err) == "" || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%.60q: %v", address, err)
			}
			continue
		}
		if err != nil || s.String() != want || !regexp.MustCompile("^(?:"+Form+")").MatchString(strings.ToLower(address)) {
			t.Errorf("%q: %v, %v", address, s, err)
		}
	}
	for name, vars := range map[string]map[string]string{
		"key":       {"AZURE_STORAGE_ACCESS_KEY": "hunter2!"},
		"no tenant": {"AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hunter2"},
		"a path":    {"AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hunter2", "AZURE_TENANT_ID": "a/b"},
		"no secret": {"AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"},
		"authority": {"AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "hunter2", "AZURE_TENANT_ID": "t", "AZURE_AUTHORITY_HOST": "http://login.example"},
	} {
		if _, err := New("https://acme.blob.core.windows.net/models/m", cloudtest.Environ(t, "", nil, vars)); !errors.Is(err, source.ErrUsage) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// serve answers as the account acme.
func serve(t *testing.T, address string, h http.HandlerFunc) *Source {
	t.Helper()
	dir := cloudtest.Certificate(t, "acme.blob.core.windows.net")
	s, err := New(address, cloudtest.Environ(t, dir, map[string]string{"": cloudtest.Serve(t, dir, h)}, nil))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func TestSharedAccessSignatureGoesAlong(t *testing.T) {
	s := serve(t, "https://acme.blob.core.windows.net/models/m/?sv=2021&sig=a%2Bb%3D&prefix=x", func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Get("sig") != "a+b=" || q.Get("sv") != "2021" || q.Get("comp") == "list" && q.Get("prefix") != "m" && q.Get("prefix") != "m/" || r.Header.Get("Authorization") != "" {
			t.Errorf("%s", r.URL)
		}
		_, _ = io.WriteString(w, `<EnumerationResults><Blobs><Blob><Name>m/a</Name><Properties><Content-Length>1</Content-Length></Properties></Blob></Blobs></EnumerationResults>`)
	})
	if got, err := s.List(t.Context()); err != nil || len(got) != 1 || strings.Contains(s.String(), "sig") {
		t.Errorf("%v, %v", got, err)
	}
}

func TestHostileListings(t *testing.T) {
	blob := func(name, props string) string {
		return `<EnumerationResults><Blobs><Blob><Name>` + name + `</Name><Properties>` + props + `</Properties></Blob></Blobs></EnumerationResults>`
	}
	const one = `<Content-Length>1</Content-Length>`
	for name, tt := range map[string]struct {
		body string
		is   error
	}{
		"not XML":     {"{}", source.ErrListing},
		"other XML":   {"<html></html>", source.ErrListing},
		"bomb":        {`<!DOCTYPE x [<!ENTITY a "aaaa">]>` + blob("m/&a;", one), source.ErrListing},
		"up":          {blob("m/../x", one), source.ErrListing},
		"elsewhere":   {blob("n/x", one), source.ErrListing},
		"no name":     {blob("", one), source.ErrListing},
		"negative":    {blob("m/x", "<Content-Length>-1</Content-Length>"), source.ErrListing},
		"huge":        {blob("m/x", "<Content-Length>9000000000000000000</Content-Length>"), source.ErrListing},
		"a directory": {blob("m/x", one+"<ResourceType>directory</ResourceType>"), source.ErrNotFound},
		"same page":   {`<EnumerationResults><NextMarker>n</NextMarker></EnumerationResults>`, source.ErrListing},
	} {
		s := serve(t, "https://acme.blob.core.windows.net/models/m", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, tt.body) })
		if got, err := s.List(t.Context()); !errors.Is(err, tt.is) || podvm.Cause(err) == "" {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func FuzzPage(f *testing.F) {
	f.Add([]byte(`<EnumerationResults><Blobs><Blob><Name Encoded="true">a%20b</Name><Properties><Content-Length>1</Content-Length><Etag>"0x1"</Etag></Properties></Blob></Blobs><NextMarker>n</NextMarker></EnumerationResults>`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := parsePage(raw)
		for _, o := range p.Objects {
			if err != nil || o.Path == "" || o.Size < 0 || strings.ContainsAny(o.Version, "\r\n") {
				t.Errorf("%+v, %v", o, err)
			}
		}
	})
}
