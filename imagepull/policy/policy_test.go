package policy

import (
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm"
)

const accept = `[{"type":"insecureAcceptAnything"}]`

func TestParseRefuses(t *testing.T) {
	key := newKey(t, "P-256")
	keyData := `"keyData":` + j(key.pub)
	private, err := base64.StdEncoding.DecodeString("LS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCkFBQUEKLS0tLS1FTkQgUFJJVkFURSBLRVktLS0tLQo=")
	if err != nil {
		t.Fatal(err)
	}
	one := func(req string) string { return `{"default":[` + req + `],"transports":{}}` }
	tests := map[string]struct{ text, want string }{
		"nothing":                        {``, "not a JSON object"},
		"a list":                         {`[]`, "not a JSON object"},
		"text after the document":        {`{"default":` + accept + `,"transports":{}} {}`, "data after"},
		"not UTF-8":                      {"{\"default\":\"\xff\"}", "not UTF-8"},
		"no default":                     {`{"transports":{}}`, `"default" is missing`},
		"default under another case":     {`{"Default":` + accept + `,"transports":{}}`, `"default" is missing`},
		"no transports":                  {`{"default":` + accept + `}`, `"transports" is missing`},
		"transports is a list":           {`{"default":` + accept + `,"transports":[]}`, "transports: not a JSON object"},
		"default is null":                {`{"default":null,"transports":{}}`, "the list is empty"},
		"empty default":                  {`{"default":[],"transports":{}}`, "the list is empty"},
		"empty scope":                    {`{"default":` + accept + `,"transports":{"docker":{"quay.io":[]}}}`, `transports.docker["quay.io"]: the list is empty`},
		"empty scope elsewhere":          {`{"default":` + accept + `,"transports":{"dir":{"":[]}}}`, "the list is empty"},
		"default twice":                  {`{"default":` + accept + `,"default":` + accept + `,"transports":{}}`, `"default" appears twice`},
		"scope twice":                    {`{"default":` + accept + `,"transports":{"docker":{"a":` + accept + `,"a":` + accept + `}}}`, `"a" appears twice`},
		"type twice":                     {one(`{"type":"reject","type":"insecureAcceptAnything"}`), `"type" appears twice`},
		"no type":                        {one(`{}`), `"type" is missing`},
		"type of another kind":           {one(`{"type":7}`), `"type" is not a non-empty string`},
		"unknown type":                   {one(`{"type":"acceptAll"}`), `unknown type "acceptAll"`},
		"unknown type, other transport":  {`{"default":` + accept + `,"transports":{"dir":{"":[{"type":"x"}]}}}`, `unknown type "x"`},
		"type in another case":           {one(`{"type":"Reject"}`), `unknown type "Reject"`},
		"GPG without a key type":         {one(`{"type":"signedBy","keyPath":"/k"}`), `signedBy: "keyType" is missing`},
		"GPG of another key type":        {one(`{"type":"signedBy","keyType":"signedByGPGKeys","keyPath":"/k"}`), `keyType "signedByGPGKeys" is not available, want GPGKeys`},
		"GPG without a key":              {one(`{"type":"signedBy","keyType":"GPGKeys"}`), "want exactly one of keyPath"},
		"GPG with a PEM key":             {one(`{"type":"signedBy","keyType":"GPGKeys","keyData":` + j(key.pub) + `}`), "neither armored nor base64"},
		"GPG with junk for a key":        {one(`{"type":"signedBy","keyType":"GPGKeys","keyData":"AAAA"}`), "not an OpenPGP key ring"},
		"GPG with no key in the ring":    {one(`{"type":"signedBy","keyType":"GPGKeys","keyData":""}`), "not a non-empty string"},
		"GPG with a rekor key":           {one(`{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k","rekorPublicKeyPath":"/r"}`), `signedBy: "rekorPublicKeyPath" is a constraint`},
		"encrypted, unknown field":       {one(`{"type":"sealpodEncrypted","minLayers":2}`), `sealpodEncrypted: unknown field "minLayers"`},
		"encrypted, at least none":       {one(`{"type":"sealpodEncrypted","minimum":0}`), `"minimum" is not a number of layers`},
		"encrypted, at least some":       {one(`{"type":"sealpodEncrypted","minimum":"2"}`), `"minimum" is not a number of layers`},
		"encrypted, at least 1.5":        {one(`{"type":"sealpodEncrypted","minimum":1.5}`), `"minimum" is not a number of layers`},
		"no key":                         {sigstore(`"x":1`), "want exactly one of keyPath"},
		"two keys":                       {sigstore(keyData + `,"keyPath":"/k"`), "have 2"},
		"empty key path":                 {sigstore(`"keyPath":""`), "not a non-empty string"},
		"empty key list":                 {sigstore(`"keyPaths":[]`), "not a non-empty list"},
		"a hole in a key list":           {sigstore(`"keyPaths":["/a",""]`), "not a non-empty list"},
		"keyPath is a list":              {sigstore(`"keyPath":["/a"]`), "not a non-empty string"},
		"very long key path":             {sigstore(`"keyPath":"` + strings.Repeat("a", 5000) + `"`), "too large"},
		"too many keys":                  {sigstore(`"keyPaths":["a"` + strings.Repeat(`,"a"`, maxKeys) + `]`), "too large: 33 keys"},
		"inline key is no key":           {sigstore(`"keyData":"hello"`), "neither PEM nor base64"},
		"inline key is private":          {sigstore(`"keyData":` + j(string(private))), "a private key where a public one belongs"},
		"two keys in one PEM":            {sigstore(`"keyData":` + j(key.pub+key.pub)), "more than one PEM block"},
		"P-521":                          {sigstore(`"keyData":` + j(newKey(t, "P-521").pub)), "unsupported curve P-521"},
		"RSA of 1024 bits":               {sigstore(`"keyData":` + j(newKey(t, "RSA-1024").pub)), "too weak"},
		"fulcio":                         {sigstore(keyData + `,"fulcio":{}`), `"fulcio" is a constraint this build does not enforce: keyless signatures`},
		"pki":                            {sigstore(keyData + `,"pki":{}`), `"pki" is a constraint`},
		"rekor key path":                 {sigstore(keyData + `,"rekorPublicKeyPath":"/r"`), `"rekorPublicKeyPath" is a constraint`},
		"a rekor key of a later version": {sigstore(keyData + `,"rekorSomethingNew":"/r"`), `"rekorSomethingNew" is a constraint this build does not enforce: entries of a transparency log`},
		"exactReference of nothing":      {sigstore(keyData + `,"signedIdentity":{"type":"exactReference"}`), `"dockerReference" is missing`},
		"exactReference without a tag":   {sigstore(keyData + `,"signedIdentity":{"type":"exactReference","dockerReference":"quay.io/a/b"}`), "neither a tag nor a digest"},
		"remapIdentity of nothing":       {sigstore(keyData + `,"signedIdentity":{"type":"remapIdentity","prefix":"quay.io"}`), `"signedPrefix" is missing`},
		"remapIdentity of nonsense":      {sigstore(keyData + `,"signedIdentity":{"type":"remapIdentity","prefix":"quay.io/a:1","signedPrefix":"quay.io"}`), `"prefix" is no registry host or repository`},
		"rekor key data":                 {sigstore(keyData + `,"rekorPublicKeyData":"x"`), `"rekorPublicKeyData" is a constraint`},
		"rekor key lists":                {sigstore(keyData + `,"rekorPublicKeyDatas":[]`), `"rekorPublicKeyDatas" is a constraint`},
		"unknown identity":               {sigstore(keyData + `,"signedIdentity":{"type":"any"}`), `unknown type "any"`},
		"identity without type":          {sigstore(keyData + `,"signedIdentity":{}`), `"type" is missing`},
		"identity is text":               {sigstore(keyData + `,"signedIdentity":"matchRepository"`), "not a JSON object"},
		"exactRepository of nothing":     {sigstore(keyData + `,"signedIdentity":{"type":"exactRepository"}`), `"dockerRepository" is missing`},
		"exactRepository of nonsense":    {sigstore(keyData + `,"signedIdentity":{"type":"exactRepository","dockerRepository":"A B"}`), "malformed"},
		"a host in two cases":            {`{"default":` + accept + `,"transports":{"docker":{"quay.io/a":[{"type":"reject"}],"Quay.io/a":` + accept + `}}}`, "another rule for the same name in another case"},
		"too many requirements":          {`{"default":[{"type":"reject"}` + strings.Repeat(`,{"type":"reject"}`, maxRequirements) + `],"transports":{}}`, "too large"},
		"too large":                      {strings.Repeat(" ", maxPolicy+1), "too large"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := Parse([]byte(tt.text))
			if p != nil || !errors.Is(err, ErrInvalid) {
				t.Fatalf("Parse = %v, %v; want ErrInvalid", p, err)
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not say %q", err, tt.want)
			}
			if cause := podvm.Cause(err); !strings.Contains(cause, tt.want) {
				t.Errorf("cause %q does not say %q", cause, tt.want)
			}
		})
	}
}

func TestParseAccepts(t *testing.T) {
	pub := newKey(t, "P-256").pub
	b64 := base64.StdEncoding.EncodeToString([]byte(pub))
	tests := map[string]struct {
		text     string
		warnings []string
	}{
		"the minimum":        {text: `{"default":` + accept + `,"transports":{}}`},
		"key path":           {text: sigstore(`"keyPath":"kbs:///default/key/1"`)},
		"key paths":          {text: sigstore(`"keyPaths":["/a","file:///b"]`)},
		"PEM key":            {text: sigstore(`"keyData":` + j(pub))},
		"base64 key":         {text: sigstore(`"keyData":` + j(b64))},
		"mixed inline keys":  {text: sigstore(`"keyDatas":` + j([]string{pub, b64}))},
		"GPG elsewhere only": {text: `{"default":` + accept + `,"transports":{"docker-daemon":{"":[{"type":"signedBy"}]}}}`},
		"unknown fields warn": {
			text:     `{"default":[{"type":"reject","why":1}],"transports":{"docker":{"quay.io":[{"type":"sigstoreSigned","keyPath":"/k","hint":"x","signedIdentity":{"type":"matchRepository","z":1}}]}},"comment":1}`,
			warnings: []string{`default[0]: unknown field "why" ignored`, `policy: unknown field "comment" ignored`, `transports.docker["quay.io"][0]: unknown field "hint" ignored`, `transports.docker["quay.io"][0].signedIdentity: unknown field "z" ignored`},
		},
		"a scope that can never match warns": {
			text:     `{"default":` + accept + `,"transports":{"docker":{"index.docker.io/library":` + accept + `}}}`,
			warnings: []string{`transports.docker["index.docker.io/library"] never matches: images of Docker Hub are looked up under docker.io`},
		},
		"the name of Docker Hub's registry matches itself": {text: `{"default":` + accept + `,"transports":{"docker":{"registry-1.docker.io/library":` + accept + `}}}`},
		"GPG key path":                 {text: `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPath":"kbs:///a/b/c"}],"transports":{}}`},
		"GPG key paths":                {text: `{"default":[{"type":"signedBy","keyType":"GPGKeys","keyPaths":["/a","/b"],"signedIdentity":{"type":"remapIdentity","prefix":"mirror.local/quay","signedPrefix":"quay.io"}}],"transports":{}}`},
		"encrypted beside a signature": {text: `{"default":[{"type":"sigstoreSigned","keyPath":"/k"},{"type":"sealpodEncrypted","minimum":2}],"transports":{}}`},
		"encrypted alone warns": {
			text:     `{"default":[{"type":"sealpodEncrypted"}],"transports":{}}`,
			warnings: []string{`default: sealpodEncrypted alone does not say who composed the image; add sigstoreSigned or signedBy`},
		},
		"an identity cosign cannot carry warns": {
			text:     sigstore(`"keyPath":"/k","signedIdentity":{"type":"matchExact"}`),
			warnings: []string{`default[0].signedIdentity: matchExact cannot be checked on a cosign signature, the rule rejects every image; use matchRepository or exactRepository`},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if d := cmp.Diff(tt.warnings, parsed(t, tt.text).Warnings()); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestLookup removes the winning scope one at a time: each level must give way
// to exactly the next one.
func TestLookup(t *testing.T) {
	img := Image{Registry: "reg.eu.example.com:5000", Repository: "team/app/web", Tag: "1", Digest: digestA}
	order := []string{
		"reg.eu.example.com:5000/team/app/web:1@" + digestA,
		"reg.eu.example.com:5000/team/app/web",
		"reg.eu.example.com:5000/team/app",
		"reg.eu.example.com:5000/team",
		"reg.eu.example.com:5000",
		"*.eu.example.com",
		"*.example.com",
		"*.com",
		"",
	}
	if d := cmp.Diff(order, img.Scopes()); d != "" {
		t.Fatal(d)
	}
	for i := range order {
		scopes := map[string]any{"other.example.com": []any{map[string]string{"type": "reject"}}}
		for _, s := range order[i:] {
			scopes[s] = []any{map[string]string{"type": "reject"}}
		}
		p := parsed(t, j(map[string]any{"default": []any{map[string]string{"type": "reject"}}, "transports": map[string]any{"docker": scopes}}))
		if got, _ := p.lookup(img); got != fmt.Sprintf("transports.docker[%q]", order[i]) {
			t.Errorf("level %d: %s", i, got)
		}
	}
	p := parsed(t, `{"default":`+accept+`,"transports":{"docker":{"reg.eu.example.com":[{"type":"reject"}],"*.reg.eu.example.com":[{"type":"reject"}],"reg.eu.example.com:5000/tea":[{"type":"reject"}],"reg.eu.example.com:5000/team/app/web:2":[{"type":"reject"}]},"atomic":{"":[{"type":"reject"}]}}}`)
	if got, _ := p.lookup(img); got != "default" {
		t.Errorf("near misses: %s", got)
	}
	p = parsed(t, `{"default":`+accept+`,"transports":{"docker":{"Quay.IO/Team":[{"type":"reject"}],"*.Corp.Example":[{"type":"reject"}],"quay.io/a:Tag":[{"type":"reject"}]}}}`)
	for _, tt := range []struct{ registry, repository, tag, want string }{
		{"quay.IO", "a", "Tag", `transports.docker["quay.io/a:Tag"]`}, // hosts have no case, tags do
		{"quay.io", "a", "tag", "default"},
		{"QUAY.io", "Team/x", "1", `transports.docker["quay.io/Team"]`},
		{"R.CORP.example:5000", "a", "1", `transports.docker["*.corp.example"]`},
	} {
		if got, _ := p.lookup(Image{Registry: tt.registry, Repository: tt.repository, Tag: tt.tag}); got != tt.want {
			t.Errorf("%v: %s", tt, got)
		}
	}
	for registry, want := range map[string][]string{
		"localhost:5000": {"localhost:5000/a", "localhost:5000", ""},
		"[::1]:5000":     {"[::1]:5000/a", "[::1]:5000", ""},
		"docker.io":      {"docker.io/a", "docker.io", "*.io", ""},
	} {
		if d := cmp.Diff(want, Image{Registry: registry, Repository: "a"}.Scopes()[1:]); d != "" {
			t.Errorf("%s: %s", registry, d)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"quay.io/a":[{"type":"sigstoreSigned","keyPath":"/k","signedIdentity":{"type":"matchRepository"}}]}}}`))
	f.Add([]byte(sigstore(`"keyDatas":["-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----"]`)))
	f.Add([]byte(`{"default":[{"type":"reject"}],"transports":{"dir":{"":[{"type":"signedBy"}]}},"default":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		p, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrInvalid) || p != nil {
				t.Fatalf("Parse = %v, %v", p, err)
			}
			return
		}
		if len(p.fallback) == 0 {
			t.Fatal("a policy without a default")
		}
		for scope, reqs := range p.scopes {
			if len(reqs) == 0 {
				t.Fatalf("scope %q is empty", scope)
			}
		}
		if _, reqs := p.lookup(testImage); len(reqs) == 0 {
			t.Fatal("no requirement for an image")
		}
	})
}
