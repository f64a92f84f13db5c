package registry

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	hex64   = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	digest1 = "sha256:" + hex64
)

func TestParseReference(t *testing.T) {
	tests := map[string]struct {
		text string
		want Reference
	}{
		"short name is Docker Hub's":      {"nginx", Reference{"docker.io", "library/nginx", "latest", ""}},
		"two components are Docker Hub's": {"team/app:1", Reference{"docker.io", "team/app", "1", ""}},
		"written-out Docker Hub":          {"docker.io/nginx", Reference{"docker.io", "library/nginx", "latest", ""}},
		"old name of Docker Hub":          {"index.docker.io/team/app", Reference{"docker.io", "team/app", "latest", ""}},
		"localhost":                       {"localhost/app", Reference{"localhost", "app", "latest", ""}},
		"port":                            {"host:5000/a/b:t", Reference{"host:5000", "a/b", "t", ""}},
		"IPv6":                            {"[::1]:5000/a", Reference{"[::1]:5000", "a", "latest", ""}},
		"digest only has no tag":          {"quay.io/a@" + digest1, Reference{"quay.io", "a", "", digest1}},
		"tag and digest are both kept":    {"quay.io/a:1@" + digest1, Reference{"quay.io", "a", "1", digest1}},
		"sha384":                          {"quay.io/a@sha384:" + hex64 + hex64[:32], Reference{"quay.io", "a", "", "sha384:" + hex64 + hex64[:32]}},
		"sha512":                          {"quay.io/a@sha512:" + hex64 + hex64, Reference{"quay.io", "a", "", "sha512:" + hex64 + hex64}},
		"separators":                      {"quay.io/a_b/c__d/e-f/g.h", Reference{"quay.io", "a_b/c__d/e-f/g.h", "latest", ""}},
		"hosts have no case":              {"Quay.IO/a:T", Reference{"quay.io", "a", "T", ""}},
		"Docker Hub has none either":      {"Index.Docker.IO/nginx", Reference{"docker.io", "library/nginx", "latest", ""}},
		"nor has IPv6":                    {"[FE80::A]:5000/a", Reference{"[fe80::a]:5000", "a", "latest", ""}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := ParseReference(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseReferenceRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing":               "",
		"space":                 "a b",
		"upper case path":       "quay.io/App",
		"upper case word":       "Registry/app", // a host for docker, a path for upstream
		"empty tag":             "quay.io/a:",
		"empty component":       "quay.io//a",
		"trailing slash":        "quay.io/a/",
		"no path":               "quay.io:5000/",
		"dot dot":               "quay.io/../a",
		"scheme":                "https://quay.io/a",
		"short digest":          "quay.io/a@sha256:00",
		"upper case digest":     "quay.io/a@sha256:" + strings.ToUpper(hex64),
		"unknown algorithm":     "quay.io/a@md5:" + hex64[:32],
		"empty digest":          "quay.io/a@",
		"two digests":           "quay.io/a@" + digest1 + "@" + digest1,
		"long tag":              "quay.io/a:" + strings.Repeat("x", 129),
		"long repository":       "quay.io/" + strings.Repeat("x", 250),
		"long port":             "quay.io:123456/a",
		"query":                 "quay.io/a?b",
		"user":                  "u@quay.io/a",
		"control character":     "quay.io/a\n",
		"percent":               "quay.io/a%2fb",
		"host starts with dash": "-h.io/a",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseReference(text); !errors.Is(err, ErrReference) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"nginx", "a/b:c@" + digest1, "h:1/a", "[::1]/a", "a@b", "x:y:z", "docker.io/library/x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ref, err := ParseReference(text)
		if err != nil {
			return
		}
		again, err := ParseReference(ref.String())
		if err != nil || again != ref {
			t.Errorf("%q -> %+v -> %+v, %v", text, ref, again, err)
		}
		if strings.ContainsAny(ref.Name()+ref.target(), "?#%\\ \n") || strings.Contains(ref.Name(), "..") {
			t.Errorf("%q is not safe in a URL", ref)
		}
	})
}
