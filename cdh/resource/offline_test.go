package resource

import (
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// tree writes machine files below a new root.
func tree(t testing.TB, files map[string]string) podvm.Host {
	t.Helper()
	root := t.TempDir()
	for p, text := range files {
		write(t, filepath.Join(root, p), text)
	}
	return podvm.Host{Root: root}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestOfflineLookup(t *testing.T) {
	host := tree(t, map[string]string{
		podvm.OfflineKeysFile:      `{"default/key/1":"` + b64("first") + `","default/key/2":"` + b64("two") + `","a/b":"` + b64("short") + `"}`,
		podvm.OfflineResourcesFile: `{"default/key/1":"` + b64("second") + `","default/key/1":"` + b64("third") + `","default/e/1":""}`,
		"/extra.json":              `{"default/key/2":"` + b64("extra") + `"}`,
	})
	s := open(t, Config{KBC: OfflineFS, Host: host, ExtraFiles: []string{"/extra.json", "/absent.json"}, Log: cdhtest.Quiet})
	tests := map[string]struct {
		uri, want string
		is        error
	}{
		"later entry wins in a file and across files": {uri: "kbs:///default/key/1", want: "third"},
		"an extra file wins":                          {uri: "kbs:///default/key/2", want: "extra"},
		"host, plugin and query do not count":         {uri: "kbs+other://host:1/default/key/2?x=y", want: "extra"},
		"any number of segments":                      {uri: "kbs:///a/b", want: "short"},
		"an empty resource":                           {uri: "kbs:///default/e/1", want: ""},
		"the first segment is a host without ///":     {uri: "kbs://default/key/1", is: ErrNotFound},
		"dots are resolved before the look-up":        {uri: "kbs:///x/../default/key/2", want: "extra"},
		"absent":                                      {uri: "kbs:///default/key/3", is: ErrNotFound},
		"the empty path":                              {uri: "kbs:///", is: ErrNotFound},
		"not a URI":                                   {uri: "default/key/1", is: kbs.ErrURI},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := s.Resource(t.Context(), tt.uri)
			if !errors.Is(err, tt.is) {
				t.Fatal(err)
			}
			if err == nil && (got == nil || string(got) != tt.want) {
				t.Fatalf("got %q, want %q", []byte(got), tt.want)
			}
			if err != nil && podvm.Cause(err) == "" {
				t.Errorf("no cause in %v", err)
			}
		})
	}
}

func TestOfflineFilesThatCannotBeParsed(t *testing.T) {
	for name, text := range map[string]string{
		"not JSON":             "{",
		"an array":             `[]`,
		"a value not a string": `{"a":1}`,
		"null":                 `{"a":null}`,
		"base64 not padded":    `{"a":"AAE"}`,
		"base64 for URLs":      `{"a":"-_-_"}`,
		"base64 with a break":  `{"a":"AA\nE="}`,
		"data after it":        `{} {}`,
		"empty":                "",
		"too large":            `{"a":"` + strings.Repeat("A", maxOfflineFile) + `"}`,
	} {
		t.Run(name, func(t *testing.T) {
			host := tree(t, map[string]string{podvm.OfflineKeysFile: text})
			_, err := New(Config{KBC: OfflineFS, Host: host, Log: cdhtest.Quiet})
			if !errors.Is(err, ErrInit) || !strings.Contains(podvm.Cause(err), podvm.OfflineKeysFile) {
				t.Fatalf("cause %q of %v", podvm.Cause(err), err)
			}
		})
	}
}

func TestOfflineFilesAreReadForEveryCall(t *testing.T) {
	host := tree(t, nil)
	s := open(t, Config{KBC: OfflineFS, Host: host, Log: cdhtest.Quiet})
	if _, err := s.Resource(t.Context(), uri); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	file := filepath.Join(host.Root, podvm.OfflineResourcesFile)
	write(t, file, `{"default/key/1":"`+b64("now")+`"}`)
	if got, err := s.Resource(t.Context(), uri); err != nil || string(got) != "now" {
		t.Fatalf("%q, %v", []byte(got), err)
	}
	write(t, file, `{"default/key/1":`)
	if _, err := s.Resource(t.Context(), uri); !errors.Is(err, ErrInit) {
		t.Fatal(err)
	}
}

func FuzzOfflineFile(f *testing.F) {
	f.Add([]byte(`{"default/key/1":"AAE="}`), "default/key/1")
	f.Add([]byte(`{"a":"","a":"AA=="}`), "a")
	f.Add([]byte(`{"a":null}`), "a")
	f.Fuzz(func(t *testing.T, raw []byte, name string) {
		got, err := entry(raw, name)
		if err != nil && got != nil {
			t.Fatal("content beside an error")
		}
	})
}
