package snp

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-sev-guest/verify/trust"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// Root is the root of trust of one product: the root key (ARK) and the keys it
// certified for VCEKs (ASK) and VLEKs (ASVK). A nil ASK or ASVK means that no
// such report is accepted unless the guest sends that certificate.
type Root struct{ ARK, ASK, ASVK *x509.Certificate }

// AMDRoots returns AMD's roots of trust by product, from go-sev-guest.
func AMDRoots() (map[string]Root, error) {
	roots := map[string]Root{}
	for name, texts := range map[string][2][]byte{
		Milan: {trust.AskArkMilanVcekBytes, trust.AskArkMilanVlekBytes},
		Genoa: {trust.AskArkGenoaVcekBytes, trust.AskArkGenoaVlekBytes},
		Turin: {trust.AskArkTurinVcekBytes, trust.AskArkTurinVlekBytes},
	} {
		root, err := ParseRoot(texts[0], texts[1])
		if err != nil {
			return nil, fmt.Errorf("reading the roots of %s: %w", name, err)
		}
		roots[name] = root
	}
	return roots, nil
}

// ParseRoot reads a root of trust from PEM texts as AMD's key server has them
// at vcek/v1/PRODUCT/cert_chain and vlek/v1/PRODUCT/cert_chain. Certificates
// are told apart by subject: "ARK-...", "SEV-VLEK-..." and "SEV-...". There must
// be exactly one ARK, in one or more copies.
func ParseRoot(pems ...[]byte) (Root, error) {
	var root Root
	for _, text := range pems {
		for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
			cert, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return Root{}, fmt.Errorf("parsing certificate: %w", err)
			}
			slot := &root.ASK
			switch name := cert.Subject.CommonName; {
			case strings.HasPrefix(name, "ARK-"):
				slot = &root.ARK
			case strings.HasPrefix(name, "SEV-VLEK-"):
				slot = &root.ASVK
			}
			if *slot != nil && !cert.Equal(*slot) {
				return Root{}, fmt.Errorf("two different certificates like %q", podvm.Printable(cert.Subject.CommonName, 64))
			}
			*slot = cert
		}
	}
	if root.ARK == nil {
		return Root{}, errors.New("no ARK (a certificate with a subject like ARK-Milan)")
	}
	for _, c := range []*x509.Certificate{root.ARK, root.ASK, root.ASVK} {
		if c == nil {
			continue
		}
		if err := c.CheckSignatureFrom(root.ARK); err != nil {
			return Root{}, fmt.Errorf("%q is not signed by the ARK: %w", podvm.Printable(c.Subject.CommonName, 64), err)
		}
	}
	return root, nil
}

// stranger says what evidence under another root is.
const stranger = " (evidence of a simulator, or of other hardware than configured)"

// pick returns the one certificate of that type, nil when there is none.
func pick(chain []Certificate, kind string) (*x509.Certificate, error) {
	var found *x509.Certificate
	for _, c := range chain {
		if c.Type != kind {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: two certificates of type %s", verifier.ErrEvidence, kind)
		}
		cert, err := x509.ParseCertificate(c.DER)
		if err != nil {
			return nil, fmt.Errorf("%w: parsing the %s: %w", verifier.ErrEvidence, kind, err)
		}
		found = cert
	}
	return found, nil
}

// checkChain verifies the endorsement key up to the root and returns the
// certificate that issued it. An ASK that the guest sent serves in place of the
// configured one, if the root signed it; an ARK must be the root's key.
func checkChain(key *x509.Certificate, signer uint32, root Root, chain []Certificate, now time.Time) (*x509.Certificate, error) {
	bad := func(what string, err error) error { return fmt.Errorf("%w: %s: %w", verifier.ErrEvidence, what, err) }
	kind, issuer := "ASK", root.ASK
	if signer == signedByVLEK {
		kind, issuer = "ASVK", root.ASVK
	}
	ark, err := pick(chain, "ARK")
	if err != nil {
		return nil, err
	}
	if ark != nil {
		if err := ark.CheckSignatureFrom(root.ARK); err != nil {
			return nil, bad("the ARK sent along is not that of this product, or not of a trusted root"+stranger, err)
		}
	}
	// The certificate table of a host has one slot for both; one that sends the
	// ASK beside a VLEK does not help and does not harm.
	sent, err := pick(chain, "ASK")
	if err != nil {
		return nil, err
	}
	if sent != nil && strings.HasPrefix(sent.Subject.CommonName, "SEV-VLEK-") == (kind == "ASVK") {
		issuer = sent
	}
	if issuer == nil {
		return nil, fmt.Errorf("%w: no %s for this product, neither configured nor sent along", verifier.ErrEvidence, kind)
	}
	if err := issuer.CheckSignatureFrom(root.ARK); err != nil {
		return nil, bad("the "+kind+" is not signed by a trusted root of this product"+stranger, err)
	}
	if err := key.CheckSignatureFrom(issuer); err != nil {
		return nil, bad("the endorsement key is not signed by the "+kind+" of a trusted root"+stranger, err)
	}
	for _, c := range []*x509.Certificate{root.ARK, issuer, key} {
		if now.Before(c.NotBefore) || now.After(c.NotAfter) {
			return nil, fmt.Errorf("%w: certificate %q is valid from %s to %s, now is %s: check the clock", verifier.ErrEvidence,
				podvm.Printable(c.Subject.CommonName, 64), c.NotBefore.Format(time.RFC3339), c.NotAfter.Format(time.RFC3339), now.Format(time.RFC3339))
		}
	}
	return issuer, nil
}

// The extensions of endorsement keys. Source: AMD 57230 §3.
var (
	oidHardwareID = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 4}
	oidVersions   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3} // and one more number
)

func extension(cert *x509.Certificate, oid asn1.ObjectIdentifier) []byte {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oid) {
			return e.Value
		}
	}
	return nil
}

// keyTCB reads the firmware versions that an endorsement key stands for.
func keyTCB(key *x509.Certificate, product string) (TCB, error) {
	var t TCB
	type field struct {
		name string
		oid  int
		to   *uint8
	}
	fields := []field{{"bootloader", 1, &t.Bootloader}, {"tee", 2, &t.TEE}, {"snp", 3, &t.SNP}, {"microcode", 8, &t.Microcode}}
	if product == Turin {
		fields = append(fields, field{"fmc", 9, &t.FMC})
	}
	for _, f := range fields {
		var n int
		rest, err := asn1.Unmarshal(extension(key, append(slices.Clone(oidVersions), f.oid)), &n)
		if err != nil || len(rest) > 0 || n < 0 || n > 255 {
			return TCB{}, fmt.Errorf("%w: the endorsement key has no valid %s version", verifier.ErrEvidence, f.name)
		}
		*f.to = uint8(n)
	}
	return t, nil
}

// keyChip reads the id of the chip a VCEK belongs to, raw or as DER octets.
func keyChip(key *x509.Certificate, size int) ([]byte, error) {
	value := extension(key, oidHardwareID)
	if len(value) == size {
		return value, nil
	}
	var id []byte
	if rest, err := asn1.Unmarshal(value, &id); err != nil || len(rest) > 0 || len(id) != size {
		return nil, fmt.Errorf("%w: the VCEK names no chip of %d bytes", verifier.ErrEvidence, size)
	}
	return id, nil
}
