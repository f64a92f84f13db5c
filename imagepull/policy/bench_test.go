package policy

import (
	"testing"
	"time"
)

func BenchmarkCheck(b *testing.B) {
	run := func(name string, p *Policy, src Sources) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := p.Check(b.Context(), testImage, src); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, kind := range []string{"P-256", "P-384", "RSA", "Ed25519"} {
		key := newKey(b, kind)
		p := parsed(b, sigstore(`"keyData":`+j(key.pub)+`,"signedIdentity":{"type":"matchRepository"}`))
		run(kind, p, given(key.claim("quay.io/acme/app", digestA)))
	}
	key := newKey(b, "P-256")
	run("bundle", parsed(b, sigstore(`"keyData":`+j(key.pub))), bundled(key.envelope(statement(digestA, signPredicate), "")))
	pgp := newPGP(b, time.Now().Add(-time.Hour), 0)
	run("OpenPGP", pgp.policy(b, ""), lookaside(pgp.vouch("quay.io/acme/app:1", digestA)))
}
