package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/google/go-tdx-guest/pcs"
)

// ErrCollateral says that collateral is missing or is not what Intel (or the
// root in its place) signed. It is not the guest's fault.
var ErrCollateral = errors.New("no valid collateral for this platform")

// Platform names the collateral of a kind of platform.
type Platform struct {
	// FMSPC has 6 bytes.
	FMSPC [6]byte
	// CA is "platform" or "processor".
	CA string
}

// Collateral is what Intel publishes about a kind of platform, as served.
type Collateral struct {
	// TCBInfo and QEIdentity are the signed JSON documents for TDX; their
	// chains are the signing certificate and the root in PEM.
	TCBInfo, TCBInfoChain       []byte
	QEIdentity, QEIdentityChain []byte
	// PCKCRL and RootCRL are revocation lists as DER.
	PCKCRL, RootCRL []byte
}

// Source finds collateral. What it returns is verified. It must be usable by
// any number of goroutines; the verifier caches.
type Source interface {
	Collateral(ctx context.Context, p Platform) (*Collateral, error)
}

// checked is collateral whose signatures hold under the root of a chain.
type checked struct {
	tcb     pcs.TcbInfo
	qe      pcs.EnclaveIdentity
	signers []*x509.Certificate
	pckCRL  *x509.RevocationList
	rootCRL *x509.RevocationList
}

// check verifies collateral under the root and the authority of a chain, but
// for its dates.
func (c *Collateral) check(ch *chain) (*checked, error) {
	var out checked
	var err error
	if out.rootCRL, err = parseCRL(c.RootCRL, ch.root); err != nil {
		return nil, fmt.Errorf("revocation list of the root: %w", err)
	}
	if out.pckCRL, err = parseCRL(c.PCKCRL, ch.ca); err != nil {
		return nil, fmt.Errorf("revocation list of PCK certificates: %w", err)
	}
	for _, d := range []struct {
		name, member string
		text, chain  []byte
		into         any
	}{
		{"TCB info", "tcbInfo", c.TCBInfo, c.TCBInfoChain, &out.tcb},
		{"identity of the quoting enclave", "enclaveIdentity", c.QEIdentity, c.QEIdentityChain, &out.qe},
	} {
		signer, err := checkDocument(d.text, d.member, d.chain, ch.root, d.into)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.name, err)
		}
		if revoked(out.rootCRL, signer) {
			return nil, fmt.Errorf("%s: its signing certificate is revoked", d.name)
		}
		out.signers = append(out.signers, signer)
	}
	if out.tcb.ID != "TDX" || out.tcb.Version != 3 || out.qe.ID != "TD_QE" || out.qe.Version != 2 {
		return nil, fmt.Errorf("TCB info %q version %d and enclave identity %q version %d, must be TDX 3 and TD_QE 2",
			out.tcb.ID, out.tcb.Version, out.qe.ID, out.qe.Version)
	}
	return &out, nil
}

func parseCRL(der []byte, issuer *x509.Certificate) (*x509.RevocationList, error) {
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(list.RawIssuer, issuer.RawSubject) {
		return nil, errors.New("of another issuer")
	}
	return list, list.CheckSignatureFrom(issuer)
}

func revoked(list *x509.RevocationList, cert *x509.Certificate) bool {
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(cert.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

// checkDocument reads {"member":{...},"signature":"hex"}. The signature is over
// the bytes of the member as they stand.
func checkDocument(text []byte, name string, chainPEM []byte, root *x509.Certificate, into any) (*x509.Certificate, error) {
	certs, err := parsePEM(chainPEM, 2)
	if err != nil {
		return nil, fmt.Errorf("issuer chain: %w", err)
	}
	signer := certs[0]
	if !certs[1].Equal(root) {
		return nil, errors.New("issuer chain: it ends at another root than that of the quote")
	}
	if err := issuedBy(signer, root); err != nil {
		return nil, fmt.Errorf("issuer chain: %w", err)
	}
	if !strings.HasSuffix(signer.Subject.CommonName, "SGX TCB Signing") {
		return nil, fmt.Errorf("%q may not sign collateral", signer.Subject.CommonName)
	}
	var doc map[string]json.RawMessage
	var signature string
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(doc["signature"], &signature); err != nil {
		return nil, fmt.Errorf("signature: %w", err)
	}
	raw, err := hex.DecodeString(signature)
	key, ok := signer.PublicKey.(*ecdsa.PublicKey)
	if err != nil || !ok || !verifyRaw(key, doc[name], raw) {
		return nil, errors.New("the signature does not hold")
	}
	return signer, json.Unmarshal(doc[name], into)
}

// dates are those of everything a verdict rests on.
type dates struct{ firstIssue, lastIssue, firstExpiry time.Time }

func (c *checked) dates(ch *chain) dates {
	issued := []time.Time{c.tcb.IssueDate, c.qe.IssueDate, c.pckCRL.ThisUpdate, c.rootCRL.ThisUpdate}
	expires := []time.Time{c.tcb.NextUpdate, c.qe.NextUpdate, c.pckCRL.NextUpdate, c.rootCRL.NextUpdate}
	for _, cert := range append([]*x509.Certificate{ch.pck, ch.ca, ch.root}, c.signers...) {
		issued, expires = append(issued, cert.NotBefore), append(expires, cert.NotAfter)
	}
	d := dates{issued[0], issued[0], expires[0]}
	for i := range issued {
		if issued[i].Before(d.firstIssue) {
			d.firstIssue = issued[i]
		}
		if issued[i].After(d.lastIssue) {
			d.lastIssue = issued[i]
		}
		if expires[i].Before(d.firstExpiry) {
			d.firstExpiry = expires[i]
		}
	}
	return d
}

// number is a CRL number as an integer, 0 when it is absurd.
func number(n *big.Int) int64 {
	if n == nil || !n.IsInt64() {
		return 0
	}
	return n.Int64()
}
