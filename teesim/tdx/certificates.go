package tdx

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"time"
)

// validity is how long before and after their making certificates are valid.
const validity = 5 * 365 * 24 * time.Hour

// The serial numbers of certificates, for revocation lists.
const (
	rootSerial = iota + 1
	caSerial
	pckSerial
	signerSerial
	otherSerial // of IssuePCK
)

// Certificates are those of a platform.
type Certificates struct {
	// Root stands for the Intel SGX Root CA.
	Root *x509.Certificate
	// CA is the certification authority of PCK certificates, under Root. Its
	// name is that of Intel's, which tells a verifier its kind.
	CA *x509.Certificate
	// PCK is of the platform's provisioning certification key, under CA.
	PCK *x509.Certificate
	// Signer signs TCB info and enclave identity, under Root.
	Signer *x509.Certificate
}

// Chain returns the certificates that stand in a quote, in PEM: PCK, CA, Root.
func (c Certificates) Chain() []byte { return PEM(c.PCK, c.CA, c.Root) }

// PEM returns certificates in PEM, one after the other.
func PEM(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// issue makes a certificate; a nil issuer means that it signs itself.
func issue(name string, serial int64, public crypto.PublicKey, issuer *x509.Certificate, by *ecdsa.PrivateKey, now time.Time, ext ...pkix.Extension) (*x509.Certificate, error) {
	ca := serial == rootSerial || serial == caSerial
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name, Organization: []string{"Sealpod simulator, no hardware"}},
		NotBefore: now.Add(-validity), NotAfter: now.Add(validity), ExtraExtensions: ext,
		IsCA: ca, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, by)
	if err != nil {
		return nil, fmt.Errorf("making the certificate %q: %w", name, err)
	}
	return x509.ParseCertificate(der)
}

// sign returns the signature of the SHA-256 of a message as Intel writes it: r
// and s, 32 bytes each, big-endian.
func sign(key *ecdsa.PrivateKey, message []byte) ([]byte, error) {
	hash := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		return nil, fmt.Errorf("signing: %w", err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out, nil
}

// The platform that the PCK certificate speaks of.
const (
	pceSVN       = 5
	componentSVN = 5
)

var fmspc = [6]byte{1, 2, 3, 4, 5, 6}

// oidSGX is the extension of PCK certificates; its members are numbered below
// it. Source: PCK §1.3.5.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// member is SEQUENCE { OID, ANY }.
type member struct {
	ID    asn1.ObjectIdentifier
	Value any
}

// extension returns the SGX extension of the simulated platform; that of a
// Processor CA has no platform instance and no configuration.
func extension(processor bool) (pkix.Extension, error) {
	oid := func(n ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidSGX), n...) }
	var tcb []member
	for i := range 16 {
		tcb = append(tcb, member{oid(2, i+1), componentSVN})
	}
	cpuSVN := slices.Repeat([]byte{componentSVN}, 16)
	tcb = append(tcb, member{oid(2, 17), pceSVN}, member{oid(2, 18), cpuSVN})
	all := []member{
		{oid(1), slices.Repeat([]byte{0xAA}, 16)}, // PPID
		{oid(2), tcb},
		{oid(3), []byte{0, 0}},       // PCE-ID
		{oid(4), fmspc[:]},           // FMSPC
		{oid(5), asn1.Enumerated(1)}, // SGX type: scalable
		{oid(6), []byte(instanceID)}, // platform instance
		{oid(7), []member{{oid(7, 1), true}, {oid(7, 2), false}, {oid(7, 3), true}}}, // dynamic, cached keys, SMT
	}
	if processor {
		all = all[:5]
	}
	der, err := asn1.Marshal(all)
	return pkix.Extension{Id: oidSGX, Value: der}, err
}

// instanceID is the platform instance id, 16 bytes.
const instanceID = "fedcba9876543210"
