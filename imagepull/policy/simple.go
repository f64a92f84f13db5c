package policy

import (
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// simpleClaim is what a simple-signing payload vouches for.
type simpleClaim struct {
	reference string // under this name
	digest    string // "algo:hex" of a manifest
}

// simpleType is the type of every simple-signing payload; cosign's differs, so
// that neither passes for the other.
const simpleType = "atomic container signature"

// parseClaim reads a payload as containers/image does: the part "critical" may
// hold nothing that is not understood. The part "optional" is not looked at.
func parseClaim(raw []byte) (simpleClaim, error) {
	doc, err := object(raw)
	if err != nil {
		return simpleClaim{}, err
	}
	if err := doc.exactly("critical", "optional"); err != nil {
		return simpleClaim{}, err
	}
	critical, err := doc.part("critical", "type", "image", "identity")
	if err != nil {
		return simpleClaim{}, err
	}
	kind, err := critical.need("type")
	if err != nil {
		return simpleClaim{}, err
	}
	if kind != simpleType {
		return simpleClaim{}, fmt.Errorf("type %q, not %q", podvm.Printable(kind, 64), simpleType)
	}
	image, err := critical.part("image", "docker-manifest-digest")
	if err != nil {
		return simpleClaim{}, err
	}
	ident, err := critical.part("identity", "docker-reference")
	if err != nil {
		return simpleClaim{}, err
	}
	var c simpleClaim
	if c.digest, err = image.need("docker-manifest-digest"); err != nil {
		return simpleClaim{}, err
	}
	if _, err = parseDigest(c.digest); err != nil {
		return simpleClaim{}, err
	}
	c.reference, err = ident.need("docker-reference")
	return c, err
}
