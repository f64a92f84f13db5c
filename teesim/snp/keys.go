package snp

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// validYears is how long certificates are valid before and after they are made.
const validYears = 5

// derive returns n bytes that follow from the secret of the identity.
func (c *Chip) derive(what string, n int) ([]byte, error) {
	return hkdf.Key(sha512.New384, c.secret, nil, "sealpod simulated SNP "+c.product.name+" "+what, n)
}

// private returns a key on P-384 that follows from the secret.
func (c *Chip) private(what string) (*ecdsa.PrivateKey, error) {
	for try := 0; ; try++ { // one in 2^190 numbers is no key
		raw, err := c.derive(fmt.Sprintf("key %d %s", try, what), 48)
		if err != nil {
			return nil, err
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P384(), raw); err == nil {
			return key, nil
		}
	}
}

// key makes a key and its certificate. An issuer without a certificate means
// that the key certifies itself. The result follows from the identity: the
// signature takes no randomness.
func (c *Chip) key(what string, template *x509.Certificate, issuer Key) (Key, error) {
	private, err := c.private(what)
	if err != nil {
		return Key{}, err
	}
	template.NotBefore, template.NotAfter = c.made.AddDate(-validYears, 0, 0), c.made.AddDate(validYears, 0, 0)
	template.BasicConstraintsValid = template.IsCA
	if issuer.Certificate == nil {
		issuer = Key{template, private}
	}
	der, err := x509.CreateCertificate(nil, template, issuer.Certificate, private.Public(), issuer.Private)
	if err != nil {
		return Key{}, fmt.Errorf("certifying the %s: %w", what, err)
	}
	cert, err := x509.ParseCertificate(der)
	return Key{cert, private}, err
}

// subject has AMD's common name but says whose it is.
func subject(name string) pkix.Name {
	return pkix.Name{CommonName: name, OrganizationalUnit: []string{"Engineering"}, Organization: []string{"Sealpod simulator, not AMD"}}
}

// makeMakers makes the maker's keys with names, serial numbers and key
// usages like those of AMD's certificates.
func (c *Chip) makeMakers() (m Makers, err error) {
	for _, k := range []struct {
		to           *Key
		name, crl    string
		serial       int64
		usage        x509.KeyUsage
		intermediate bool
	}{
		{&m.ARK, "ARK-" + c.product.name, "vcek", 0, x509.KeyUsageCertSign | x509.KeyUsageCRLSign, false},
		{&m.ASK, "SEV-" + c.product.name, "vcek", 1, x509.KeyUsageCertSign, true},
		{&m.ASVK, "SEV-VLEK-" + c.product.name, "vlek", 0x101, x509.KeyUsageCertSign, true},
	} {
		if *k.to, err = c.key(k.name, &x509.Certificate{
			Subject: subject(k.name), SerialNumber: big.NewInt(c.product.serial + k.serial), IsCA: true, MaxPathLenZero: k.intermediate, KeyUsage: k.usage,
			CRLDistributionPoints: []string{"https://kdsintf.invalid/" + k.crl + "/v1/" + c.product.name + "/crl"},
		}, m.ARK); err != nil {
			return Makers{}, err
		}
	}
	return m, nil
}

// The extensions of endorsement keys. Source: AMD 57230 §3.1.
var (
	oidStructVersion = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 1}
	oidProductName   = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 2}
	oidVersions      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 3} // and one more number
	oidHardwareID    = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 4}
	oidProvider      = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 3704, 1, 5}
)

// Endorse returns the key of the chip with that hardware id under that firmware
// and its certificate, a VCEK signed by the ASK. Another id than HardwareID
// stands for another chip of the same maker. A nil id means no chip but a cloud
// provider: a VLEK signed by the ASVK.
func (c *Chip) Endorse(id []byte, t TCB) (Key, error) {
	ext, err := c.extensions(id, t)
	if err != nil {
		return Key{}, fmt.Errorf("describing an endorsement key: %w", err)
	}
	name, issuer := "SEV-VCEK", c.makers.ASK
	if id == nil {
		name, issuer = "SEV-VLEK", c.makers.ASVK
	}
	return c.key(endorsement(id, t), &x509.Certificate{
		Subject: subject(name), SerialNumber: new(big.Int), ExtraExtensions: ext, // AMD's have serial number 0 too
	}, issuer)
}

// endorsement is what a private endorsement key is derived for.
func endorsement(id []byte, t TCB) string { return fmt.Sprintf("endorsement of %x under %+v", id, t) }

func (c *Chip) extensions(id []byte, t TCB) ([]pkix.Extension, error) {
	var out []pkix.Extension
	add := func(oid asn1.ObjectIdentifier, value any, params string) error {
		der, err := asn1.MarshalWithParams(value, params)
		out = append(out, pkix.Extension{Id: oid, Value: der})
		return err
	}
	if err := add(oidStructVersion, 0, ""); err != nil {
		return nil, err
	}
	if err := add(oidProductName, c.product.stepping, "ia5"); err != nil {
		return nil, err
	}
	versions := map[int]uint8{1: t.Bootloader, 2: t.TEE, 3: t.SNP, 4: 0, 5: 0, 6: 0, 7: 0, 8: t.Microcode}
	if c.product.name == Turin {
		versions[9] = t.FMC
	}
	for n := range len(versions) {
		if err := add(append(slices.Clone(oidVersions), n+1), int(versions[n+1]), ""); err != nil {
			return nil, err
		}
	}
	if id == nil {
		return out, add(oidProvider, "Simulator", "ia5")
	}
	return append(out, pkix.Extension{Id: oidHardwareID, Value: id}), nil // no DER around it
}

// CRL returns a revocation list of those certificates, due to be replaced at
// next, as DER. AMD's are signed by the ARK.
func (k Key) CRL(next time.Time, revoked ...*x509.Certificate) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: k.Certificate.NotBefore, NextUpdate: next}
	for _, c := range revoked {
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: list.ThisUpdate})
	}
	return x509.CreateRevocationList(nil, list, k.Certificate, k.Private)
}
