package snp

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// ErrNoList says that a source has no revocation list for an issuer.
var ErrNoList = errors.New("no revocation list for this product")

// Issuer names a key that signs endorsement keys: the ASK of a product, or its
// ASVK when VLEK is set. AMD has a list for each.
type Issuer struct {
	Product string
	VLEK    bool
}

// Revocations is what a Source implements that has revocation lists too.
type Revocations interface {
	// CRL returns the list on which that issuer would be, signed by the ARK of
	// the product, as DER. ErrNoList when there is none.
	CRL(ctx context.Context, of Issuer) ([]byte, error)
}

// notRevoked looks the root and the issuer of the endorsement key up in the
// lists that the guest sent along and in that of the first source with lists.
func (v *Verifier) notRevoked(ctx context.Context, r Report, root Root, issuer *x509.Certificate, chain []Certificate) error {
	for _, c := range chain {
		if c.Type != "CRL" {
			continue
		}
		// An old list that the host kept may still say that a key is revoked.
		if _, err := search(c.DER, root.ARK, issuer); errors.Is(err, verifier.ErrEvidence) {
			return err
		} else if err != nil {
			return fmt.Errorf("%w: the revocation list sent along: %w", verifier.ErrEvidence, err)
		}
	}
	for _, s := range v.config.Sources {
		lists, ok := s.(Revocations)
		if !ok {
			continue
		}
		var der []byte
		var err error
		verifier.Wait(ctx, func() { der, err = lists.CRL(ctx, Issuer{r.Product, r.signer == signedByVLEK}) })
		if errors.Is(err, ErrNoList) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("getting the revocation list of %s, without which no evidence of SNP is accepted "+
				"(an offline store that is asked first needs neither list nor network; a list lives until the next start): %w", r.Product, err)
		}
		next, err := search(der, root.ARK, issuer)
		if err != nil {
			return fmt.Errorf("revocation list of %s: %w", r.Product, err)
		}
		if !next.IsZero() && v.config.Now().After(next) {
			return fmt.Errorf("revocation list of %s: a newer one was due at %s", r.Product, next.Format(time.RFC3339))
		}
		return nil
	}
	return nil
}

// search verifies a list and returns when a newer one is due. A list that names
// one of the two certificates is verifier.ErrEvidence, a list that is not the
// root's another error.
func search(der []byte, ark, issuer *x509.Certificate) (next time.Time, err error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return time.Time{}, fmt.Errorf("parsing it: %w", err)
	}
	if err := list.CheckSignatureFrom(ark); err != nil {
		return time.Time{}, fmt.Errorf("it is not signed by the root of this product: %w", err)
	}
	for _, e := range list.RevokedCertificateEntries {
		for _, c := range []*x509.Certificate{ark, issuer} {
			if e.SerialNumber.Cmp(c.SerialNumber) == 0 {
				return time.Time{}, fmt.Errorf("%w: the certificate %q is revoked since %s", verifier.ErrEvidence,
					podvm.Printable(c.Subject.CommonName, 64), e.RevocationTime.Format(time.RFC3339))
			}
		}
	}
	return list.NextUpdate, nil
}
