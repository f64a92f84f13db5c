package policy

import (
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/sealpod/sealpod/podvm"
)

func TestCheckKeyKinds(t *testing.T) {
	payload := payloadFor("quay.io/acme/app", digestA, cosignType)
	tests := map[string]struct {
		kind string
		form signature.LoadOption
		ok   bool
	}{
		"P-256 over SHA-256":             {"P-256", options.WithHash(crypto.SHA256), true},
		"P-256 over SHA-384 is not made": {"P-256", options.WithHash(crypto.SHA384), false},
		"P-384 over SHA-256":             {"P-384", options.WithHash(crypto.SHA256), true},
		"P-384 over SHA-384":             {"P-384", options.WithHash(crypto.SHA384), true},
		"P-384 over SHA-512 is not made": {"P-384", options.WithHash(crypto.SHA512), false},
		"RSA over SHA-256":               {"RSA", options.WithHash(crypto.SHA256), true},
		"RSA over SHA-512 is not made":   {"RSA", options.WithHash(crypto.SHA512), false},
		"Ed25519":                        {"Ed25519", options.WithHash(crypto.SHA256), true},
		"Ed25519 pre-hashed":             {"Ed25519", options.WithED25519ph(), true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			key := newKey(t, tt.kind)
			p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
			d, err := p.Check(t.Context(), testImage, given(key.sign(payload, tt.form)))
			if d.Allowed != tt.ok || errors.Is(err, ErrRejected) == tt.ok {
				t.Fatalf("Check = %+v, %v", d, err)
			}
			if tt.ok && !strings.HasPrefix(d.Key, "inline key 0 (SHA256:") {
				t.Errorf("key = %q", d.Key)
			}
		})
	}
}

func TestCheckDecides(t *testing.T) {
	key, other := newKey(t, "P-256"), newKey(t, "P-256")
	good := key.claim("quay.io/acme/app", digestA)
	keyData := `"keyData":` + j(key.pub)
	tests := map[string]struct {
		text string
		sigs []Signature
		want string // part of the reason, "" when allowed
	}{
		"accept anything": {text: `{"default":` + accept + `,"transports":{}}`},
		"reject":          {text: `{"default":[{"type":"reject"}],"transports":{}}`, want: "the rule rejects every image"},
		"all requirements count": {
			text: `{"default":[{"type":"insecureAcceptAnything"},{"type":"reject"}],"transports":{}}`, want: "rejects every image",
		},
		"the scope wins over the default": {
			text: `{"default":[{"type":"reject"}],"transports":{"docker":{"quay.io/acme":` + accept + `}}}`,
		},
		"the first scope alone counts": {
			text: `{"default":` + accept + `,"transports":{"docker":{"quay.io/acme/app:1":[{"type":"reject"}],"quay.io/acme/app":` + accept + `}}}`,
			want: "rejects every image",
		},
		"other transports are not consulted": {
			text: `{"default":` + accept + `,"transports":{"oci":{"":[{"type":"reject"}]}}}`,
		},
		"signed":               {text: sigstore(keyData), sigs: []Signature{good}},
		"signed, base64 key":   {text: sigstore(`"keyData":` + j(base64.StdEncoding.EncodeToString([]byte(key.pub)))), sigs: []Signature{good}},
		"unsigned":             {text: sigstore(keyData), want: "no signature found for " + digestA},
		"any key of a list":    {text: sigstore(`"keyDatas":` + j([]string{other.pub, key.pub})), sigs: []Signature{good}},
		"no key of a list":     {text: sigstore(`"keyDatas":` + j([]string{other.pub, newKey(t, "RSA").pub})), sigs: []Signature{good}, want: "no signature of " + digestA + " is by the key"},
		"same repository":      {text: sigstore(keyData + `,"signedIdentity":{"type":"matchRepository"}`), sigs: []Signature{good}},
		"named repository":     {text: sigstore(keyData + `,"signedIdentity":{"type":"exactRepository","dockerRepository":"quay.io/acme/app"}`), sigs: []Signature{good}},
		"not named repository": {text: sigstore(keyData + `,"signedIdentity":{"type":"exactRepository","dockerRepository":"quay.io/acme/other"}`), sigs: []Signature{good}, want: "signed for quay.io/acme/app, not for quay.io/acme/other"},
		"a tag in the payload does not matter": {
			text: sigstore(keyData + `,"signedIdentity":{"type":"matchRepository"}`), sigs: []Signature{key.claim("quay.io/acme/app:7", digestA)},
		},
		"identity with line breaks in the signature": {
			text: sigstore(keyData), sigs: []Signature{{Payload: good.Payload, Base64Sig: good.Base64Sig[:20] + "\n" + good.Base64Sig[20:] + "\n"}},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := parsed(t, tt.text).Check(t.Context(), testImage, given(tt.sigs...))
			if tt.want == "" {
				if err != nil || !d.Allowed || d.Reason != "" {
					t.Fatalf("Check = %+v, %v; want allowed", d, err)
				}
				return
			}
			if !errors.Is(err, ErrRejected) || d.Allowed {
				t.Fatalf("Check = %+v, %v; want ErrRejected", d, err)
			}
			cause := podvm.Cause(err)
			if !strings.HasPrefix(cause, "Image policy rejected: Denied by policy: ") || !strings.Contains(cause, tt.want) || !strings.Contains(cause, d.Scope) {
				t.Errorf("cause = %q, want %q and the scope %q", cause, tt.want, d.Scope)
			}
			if !strings.Contains(d.Reason, tt.want) {
				t.Errorf("reason = %q", d.Reason)
			}
		})
	}
}

// Docker Hub has several names; a payload made by cosign has another one than
// a reference parsed by Docker's rules.
func TestCheckDockerHubNames(t *testing.T) {
	key := newKey(t, "P-256")
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)+`,"signedIdentity":{"type":"matchRepository"}`))
	img := Image{Registry: "docker.io", Repository: "library/nginx", Tag: "latest", TopDigest: digestA}
	for _, ref := range []string{"index.docker.io/library/nginx", "docker.io/library/nginx", "nginx", "docker.io/nginx"} {
		if d, err := p.Check(t.Context(), img, given(key.claim(ref, digestA))); err != nil || !d.Allowed {
			t.Errorf("%s: %+v, %v", ref, d, err)
		}
	}
	if _, err := p.Check(t.Context(), img, given(key.claim("index.docker.io/evil/nginx", digestA))); !errors.Is(err, ErrRejected) {
		t.Errorf("another namespace: %v", err)
	}
}

func TestCheckMissingSignatureSaysHowToMakeOne(t *testing.T) {
	keyData := `"keyData":` + j(newKey(t, "P-256").pub)
	for text, want := range map[string]string{
		sigstore(keyData): "`cosign sign --key",
		sigstore(keyData + `,"signedIdentity":{"type":"matchRepository"}`): "`cosign sign --new-bundle-format=false",
	} {
		_, err := parsed(t, text).Check(t.Context(), testImage, given())
		if cause := podvm.Cause(err); !strings.Contains(cause, want) || !strings.Contains(cause, "sealctl image sign") {
			t.Errorf("cause %q does not say %q", cause, want)
		}
	}
}

func TestCheckFetchesOnlyWhatIsNeeded(t *testing.T) {
	key := newKey(t, "P-256")
	for _, text := range []string{
		`{"default":` + accept + `,"transports":{}}`,
		`{"default":[{"type":"reject"},{"type":"sigstoreSigned","keyPath":"/k"}],"transports":{}}`,
		sigstore(`"keyPath":"/k","signedIdentity":{"type":"matchExact"}`),
		sigstore(`"keyPath":"/k","signedIdentity":{"type":"matchRepoDigestOrExact"}`),
	} {
		if _, err := parsed(t, text).Check(t.Context(), testImage, untouchable(t)); err != nil && !errors.Is(err, ErrRejected) {
			t.Errorf("%s: %v", text, err)
		}
	}
	var fetched []string
	calls := 0
	src := Sources{
		Signatures: func(context.Context) ([]Signature, error) {
			calls++
			return []Signature{key.claim("quay.io/acme/app", digestA)}, nil
		},
		Key: func(_ context.Context, uri string) ([]byte, error) {
			fetched = append(fetched, uri)
			return []byte(key.pub), nil
		},
	}
	two := `{"default":[{"type":"sigstoreSigned","keyPath":"kbs:///a/b/c"},{"type":"sigstoreSigned","keyPaths":["/d","/e"]}],"transports":{}}`
	d, err := parsed(t, two).Check(t.Context(), testImage, src)
	if err != nil || calls != 1 || strings.Join(fetched, " ") != "kbs:///a/b/c /d" || d.Key != "/d" {
		t.Errorf("%+v, %v, %d fetches of signatures, keys %v", d, err, calls, fetched)
	}
}

func TestCheckSourcesFail(t *testing.T) {
	key := newKey(t, "P-256")
	down := errors.New("connection refused")
	sigs := func(context.Context) ([]Signature, error) {
		return []Signature{key.claim("quay.io/acme/app", digestA)}, nil
	}
	noKey := func(context.Context, string) ([]byte, error) { return nil, podvm.Explain(down, "KBS not reachable") }
	tests := map[string]struct {
		text string
		src  Sources
		want string // "" when allowed
		is   error
	}{
		"key not available":    {sigstore(`"keyPath":"kbs:///a/b/c"`), Sources{Signatures: sigs, Key: noKey}, "the public key kbs:///a/b/c is not available: KBS not reachable", down},
		"key is not a key":     {sigstore(`"keyPath":"/k"`), Sources{Signatures: sigs, Key: func(context.Context, string) ([]byte, error) { return []byte("junk"), nil }}, "the public key /k is not available", nil},
		"key is huge":          {sigstore(`"keyPath":"/k"`), Sources{Signatures: sigs, Key: func(context.Context, string) ([]byte, error) { return make([]byte, maxPEM+1), nil }}, "the public key /k is not available", podvm.ErrTooLarge},
		"signatures not there": {sigstore(`"keyData":` + j(key.pub)), Sources{Key: noKey, Signatures: func(context.Context) ([]Signature, error) { return nil, down }}, "the signatures of " + digestA + " could not be fetched", down},
		"another key suffices": {sigstore(`"keyPaths":["/gone","/k"]`), Sources{Signatures: sigs, Key: func(_ context.Context, u string) ([]byte, error) {
			return map[string][]byte{"/k": []byte(key.pub)}[u], nil
		}}, "", nil},
		"another key is wrong": {sigstore(`"keyPaths":["/gone","/k"]`), Sources{Signatures: sigs, Key: func(_ context.Context, u string) ([]byte, error) {
			return map[string][]byte{"/k": []byte(newKey(t, "P-256").pub)}[u], nil
		}}, "the public key /gone is not available", nil},
		"no sources, no demand": {`{"default":` + accept + `,"transports":{}}`, Sources{}, "", nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := parsed(t, tt.text).Check(t.Context(), testImage, tt.src)
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, ErrRejected) || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Fatalf("%+v: %v", d, err)
			}
		})
	}
}

func TestCheckEndedContextIsNoVerdict(t *testing.T) {
	key := newKey(t, "P-256")
	ctx, cancel := context.WithCancel(t.Context())
	src := Sources{
		Key:        func(context.Context, string) ([]byte, error) { cancel(); return nil, context.Canceled },
		Signatures: func(context.Context) ([]Signature, error) { return []Signature{key.claim("a/b", digestA)}, nil },
	}
	_, err := parsed(t, sigstore(`"keyPaths":["/a","/b"]`)).Check(ctx, testImage, src)
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrRejected) {
		t.Errorf("Check = %v", err)
	}
}
