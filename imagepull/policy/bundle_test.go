package policy

import (
	"bytes"
	"context"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/sigstore/sigstore/pkg/signature"
	"github.com/sigstore/sigstore/pkg/signature/options"

	"github.com/sealpod/sealpod/podvm"
)

// statement is the payload of `cosign sign` in version 3.
func statement(digest, predicate string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return fmt.Sprintf(`{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%s},"annotations":{}}],"predicateType":%s,"predicate":{}}`, j(hex), j(predicate))
}

// envelope signs a statement and wraps it as a bundle; more goes into the
// verification material.
func (k testKey) envelope(body, more string, opts ...signature.LoadOption) Document {
	k.t.Helper()
	if len(opts) == 0 {
		opts = []signature.LoadOption{options.WithHash(crypto.SHA256)}
	}
	s, err := signature.LoadSignerWithOpts(k.private, opts...)
	if err != nil {
		k.t.Fatal(err)
	}
	pae := fmt.Sprintf("DSSEv1 %d %s %d %s", len(statementType), statementType, len(body), body)
	sig, err := s.SignMessage(strings.NewReader(pae))
	if err != nil {
		k.t.Fatal(err)
	}
	b64 := base64.StdEncoding.EncodeToString
	return Document{Origin: "bundle", Raw: fmt.Appendf(nil, `{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{"publicKey":{"hint":"x"}%s},"dsseEnvelope":{"payload":%q,"payloadType":%q,"signatures":[{"sig":%q}]}}`,
		more, b64([]byte(body)), statementType, b64(sig))}
}

func bundled(docs ...Document) Sources {
	return Sources{
		Signatures: func(context.Context) ([]Signature, error) { return nil, nil },
		Bundles:    func(context.Context) ([]Document, error) { return docs, nil },
	}
}

func TestBundleOfEachKeyKind(t *testing.T) {
	for kind, opts := range map[string][]signature.LoadOption{
		"P-256": {options.WithHash(crypto.SHA256)}, "P-384": {options.WithHash(crypto.SHA384)},
		"RSA": {options.WithHash(crypto.SHA256)}, "Ed25519": {options.WithHash(crypto.SHA256)},
	} {
		t.Run(kind, func(t *testing.T) {
			key := newKey(t, kind)
			p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
			d, err := p.Check(t.Context(), testImage, bundled(key.envelope(statement(digestA, signPredicate), "", opts...)))
			if err != nil || !d.Allowed {
				t.Errorf("Check = %+v, %v", d, err)
			}
			other := parsed(t, sigstore(`"keyData":`+j(newKey(t, kind).pub)))
			if _, err := other.Check(t.Context(), testImage, bundled(key.envelope(statement(digestA, signPredicate), "", opts...))); !errors.Is(err, ErrRejected) {
				t.Errorf("another key: %v", err)
			}
		})
	}
}

// A bundle with whatever in its log entries, timestamps and more is judged by
// key, statement and subject alone; each of the three must be right.
func TestAttackBundle(t *testing.T) {
	key, thief := newKey(t, "P-256"), newKey(t, "P-256")
	good := key.envelope(statement(digestA, signPredicate), "")
	replaced := func(old, by string) Document {
		return Document{Raw: bytes.Replace(good.Raw, []byte(old), []byte(by), 1)}
	}
	sigsOf := func(d Document) string { return string(d.Raw[bytes.Index(d.Raw, []byte(`[{"sig"`))+1 : len(d.Raw)-3]) }
	tests := map[string]struct {
		doc  Document
		want string // "" when accepted
	}{
		"a good one":                   {good, ""},
		"log entries that are no such": {key.envelope(statement(digestA, signPredicate), `,"tlogEntries":[{"canonicalizedBody":7,"logIndex":"x"},7,null],"timestampVerificationData":"x"`), ""},
		"another key":                  {thief.envelope(statement(digestA, signPredicate), ""), "no signature of " + digestA + " is by the key"},
		"another image":                {key.envelope(statement(digestB, signPredicate), ""), "a bundle by the right key is for another image"},
		"an attestation":               {key.envelope(statement(digestA, "https://slsa.dev/provenance/v1"), ""), `no signature but an attestation of type "https://slsa.dev/provenance/v1"`},
		"no predicate type":            {key.envelope(statement(digestA, ""), ""), `of type ""`},
		"no subject":                   {key.envelope(`{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"`+signPredicate+`","predicate":{}}`, ""), "is for another image"},
		"not a statement":              {key.envelope(`"hello"`, ""), "no signature of"},
		"made with a certificate":      {replaced(`"publicKey":{"hint":"x"}`, `"certificate":{"rawBytes":"AAAA"}`), "made with a certificate"},
		"key and certificate":          {key.envelope(statement(digestA, signPredicate), `,"certificate":{"rawBytes":"AAAA"}`), "made with a certificate"},
		"no key hint":                  {replaced(`"publicKey":{"hint":"x"}`, ``), "made with a certificate"},
		"no envelope":                  {replaced(`"dsseEnvelope"`, `"messageSignature"`), "no envelope"},
		"another payload type":         {replaced(statementType, "application/json"), `payload type "application/json"`},
		"no signature":                 {replaced(sigsOf(good), ""), "0 signatures, want one"},
		"two signatures":               {replaced(sigsOf(good), sigsOf(thief.envelope("{}", ""))+","+sigsOf(good)), "2 signatures, want one"},
		"not JSON":                     {Document{Raw: []byte("{")}, "malformed JSON"},
		"nothing":                      {Document{}, "malformed JSON"},
		"huge":                         {Document{Raw: append(good.Raw, strings.Repeat(" ", MaxBundle)...)}, "too large"},
		"a huge payload":               {key.envelope(statement(digestA, signPredicate)+strings.Repeat(" ", MaxPayload), ""), "too large"},
	}
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d, err := p.Check(t.Context(), testImage, bundled(tt.doc))
			if d.Allowed != (tt.want == "") || errors.Is(err, ErrRejected) == d.Allowed || !strings.Contains(podvm.Cause(err), tt.want) {
				t.Errorf("Check = %+v, %v", d, err)
			}
			if d, err := p.Check(t.Context(), testImage, bundled(tt.doc, good)); err != nil || !d.Allowed {
				t.Errorf("with a good one beside it: %+v, %v", d, err)
			}
		})
	}
}

// A bundle names no repository: a policy that wants one says so.
func TestBundleCannotCarryAnIdentity(t *testing.T) {
	key := newKey(t, "P-256")
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)+`,"signedIdentity":{"type":"matchRepository"}`))
	_, err := p.Check(t.Context(), testImage, bundled(key.envelope(statement(digestA, signPredicate), "")))
	if !errors.Is(err, ErrRejected) || !strings.Contains(podvm.Cause(err), "names no repository") {
		t.Errorf("Check = %v", err)
	}
}

func TestBundlesAreBounded(t *testing.T) {
	key := newKey(t, "P-256")
	p := parsed(t, sigstore(`"keyData":`+j(key.pub)))
	docs := make([]Document, MaxBundles+1)
	for i := range docs {
		docs[i] = key.envelope(statement(digestA, signPredicate), "")
	}
	if _, err := p.Check(t.Context(), testImage, bundled(docs...)); !errors.Is(err, ErrRejected) {
		t.Errorf("Check = %v", err)
	}
	down := errors.New("down")
	_, err := p.Check(t.Context(), testImage, Sources{Bundles: func(context.Context) ([]Document, error) { return nil, down }})
	if !errors.Is(err, ErrRejected) || !errors.Is(err, down) {
		t.Errorf("Check = %v", err)
	}
}

// FuzzBundle: no text without the right key's signature is accepted, and none
// ends the process.
func FuzzBundle(f *testing.F) {
	key := newKey(f, "P-256")
	p := parsed(f, sigstore(`"keyData":`+j(key.pub)))
	good := key.envelope(statement(digestB, signPredicate), "") // another image
	f.Add(good.Raw)
	f.Add([]byte(`{"verificationMaterial":{"publicKey":{}},"dsseEnvelope":{"payload":"e30=","payloadType":"` + statementType + `","signatures":[{"sig":"AA=="}]}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if d, err := p.Check(t.Context(), testImage, bundled(Document{Raw: raw})); d.Allowed || !errors.Is(err, ErrRejected) {
			t.Fatalf("Check = %+v, %v", d, err)
		}
	})
}
