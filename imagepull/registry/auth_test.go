package registry

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestAuthFileLookup(t *testing.T) {
	const image = "quay.io/team/app:1"
	tests := map[string]struct {
		image string
		keys  []string // the user of each entry is its key
		want  string   // the key chosen, "" for anonymous
	}{
		"repository":                    {image, []string{"quay.io/team/app", "quay.io/team", "quay.io"}, "quay.io/team/app"},
		"parent":                        {image, []string{"quay.io/team", "quay.io"}, "quay.io/team"},
		"host":                          {image, []string{"quay.io"}, "quay.io"},
		"URL with a path":               {image, []string{"https://quay.io/v2/"}, "https://quay.io/v2/"},
		"http URL":                      {image, []string{"http://quay.io"}, "http://quay.io"},
		"sibling path is not the host":  {image, []string{"quay.io/other"}, ""},
		"part of a component":           {image, []string{"quay.io/team/ap"}, ""},
		"other port":                    {image, []string{"quay.io:443"}, ""},
		"suffix of the host":            {image, []string{"io", "evil-quay.io"}, ""},
		"Docker Hub by its old URL":     {"nginx", []string{"https://index.docker.io/v1/"}, "https://index.docker.io/v1/"},
		"Docker Hub by its mirror name": {"nginx", []string{"registry-1.docker.io"}, "registry-1.docker.io"},
		"Docker Hub by its own name":    {"nginx", []string{"docker.io"}, "docker.io"},
		"nobody":                        {image, nil, ""},
		"case of the host":              {"QUAY.io/team/app", []string{"Quay.IO/team"}, "Quay.IO/team"},
		"case of a URL":                 {image, []string{"HTTPS://Quay.IO/v1/"}, "HTTPS://Quay.IO/v1/"},
		"a host in two cases":           {image, []string{"quay.io", "Quay.io", "qUAY.io"}, "quay.io"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var entries []string
			for _, k := range tt.keys {
				auth := base64.StdEncoding.EncodeToString([]byte(strings.ReplaceAll(k, ":", ";") + ":pass:word\r\n"))
				entries = append(entries, fmt.Sprintf("%q:{\"auth\":%q}", k, auth))
			}
			a, err := ParseAuthFile([]byte(`{"auths":{` + strings.Join(entries, ",") + `}}`))
			if err != nil {
				t.Fatal(err)
			}
			ref, err := ParseReference(tt.image)
			if err != nil {
				t.Fatal(err)
			}
			got, err := a.For(ref)
			if err != nil || got.Username != strings.ReplaceAll(tt.want, ":", ";") {
				t.Fatalf("%q, %v; want %q", got.Username, err, tt.want)
			}
			if tt.want != "" && string(got.Password) != "pass:word" {
				t.Error("password not as in the file")
			}
		})
	}
}

func TestAuthFileRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"nothing": "", "not JSON": "hunter2", "no auths": "{}", "auths is a list": `{"auths":[]}`, "auth is a number": `{"auths":{"a":{"auth":1}}}`,
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseAuthFile([]byte(text))
			if !errors.Is(err, ErrAuthFile) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %v", err)
			}
		})
	}
}

func TestOneBadAuthEntryHurtsOnlyItself(t *testing.T) {
	a, err := ParseAuthFile([]byte(`{"auths":{"bad.test":{"auth":"!"},"odd.test":{"auth":"aGFyZA=="},"helper.test":{}}}`))
	if err != nil {
		t.Fatal(err)
	}
	for image, want := range map[string]error{"bad.test/a": ErrAuthFile, "odd.test/a": ErrAuthFile, "helper.test/a": nil, "good.test/a": nil} {
		ref, _ := ParseReference(image)
		if c, err := a.For(ref); !errors.Is(err, want) || c.Username != "" {
			t.Errorf("%s: %v, %v", image, c, err)
		}
	}
}

func FuzzAuthFile(f *testing.F) {
	f.Add([]byte(`{"auths":{"quay.io":{"auth":"YTpi"},"https://docker.io/v1":{"auth":"YTpi"}}}`), "quay.io/a/b")
	f.Fuzz(func(_ *testing.T, raw []byte, image string) {
		a, err := ParseAuthFile(raw)
		if err != nil {
			return
		}
		if ref, err := ParseReference(image); err == nil {
			_, _ = a.For(ref)
		}
	})
}
