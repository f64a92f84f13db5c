package tdx

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/teesim/internal/identity"
)

const (
	// collateralLife is how long collateral is current, as Intel's.
	collateralLife = 30 * 24 * time.Hour
	// collateralSpare is how long before its end it is signed anew.
	collateralSpare = 10 * 24 * time.Hour
)

// Collateral is what Intel publishes about a kind of platform, as served.
type Collateral struct {
	// TCBInfo and QEIdentity are signed JSON documents; their chains are the
	// signing certificate and the root in PEM.
	TCBInfo, TCBInfoChain       []byte
	QEIdentity, QEIdentityChain []byte
	// PCKCRL and RootCRL are revocation lists as DER.
	PCKCRL, RootCRL []byte
}

// Collateral signs what is said about the platform. Source of the documents: PCS.
func (p *Platform) Collateral(t TCB) (*Collateral, error) {
	chain := PEM(p.keys.Signer, p.Root())
	c := &Collateral{TCBInfoChain: chain, QEIdentityChain: chain}
	var errs [4]error
	c.TCBInfo, errs[0] = p.document("tcbInfo", t.info())
	c.QEIdentity, errs[1] = p.document("enclaveIdentity", t.identity())
	c.RootCRL, errs[2] = revocations(t, p.Root(), p.keys.root)
	c.PCKCRL, errs[3] = revocations(t, p.keys.CA, p.keys.ca)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("making collateral: %w", err)
	}
	return c, nil
}

// document returns {"name":content,"signature":"hex"}.
func (p *Platform) document(name string, content any) ([]byte, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	signature, err := sign(p.keys.signer, text)
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, text, signature), err
}

// revocations is the list of an issuer.
func revocations(t TCB, issuer *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	list := &x509.RevocationList{Number: big.NewInt(revocationNumber), ThisUpdate: t.Issued, NextUpdate: t.NextUpdate}
	for _, c := range t.Revoked {
		if slices.Equal(c.RawIssuer, issuer.RawSubject) {
			list.RevokedCertificateEntries = append(list.RevokedCertificateEntries,
				x509.RevocationListEntry{SerialNumber: c.SerialNumber, RevocationTime: t.Issued})
		}
	}
	return x509.CreateRevocationList(rand.Reader, list, issuer, key)
}

const revocationNumber = 7

// File returns the collateral as Intel's PcsClientTool writes it, for encoding
// as JSON. ca is the kind of CA, "platform" or "processor".
// Source: trustee deps/verifier/src/intel_dcap/collateral_service.rs at 78962cd4.
func (c *Collateral) File(fmspc, ca string) map[string]any {
	lists := map[string]any{"processorCrl": "", "platformCrl": ""}
	lists[ca+"Crl"] = hex.EncodeToString(c.PCKCRL)
	return map[string]any{"platforms": []any{}, "collaterals": map[string]any{
		"version":      "4",
		"tcbinfos":     []any{map[string]any{"fmspc": fmspc, "sgx_tcbinfo": nil, "tdx_tcbinfo": json.RawMessage(c.TCBInfo)}},
		"pckcacrl":     lists,
		"tdqeidentity": json.RawMessage(c.QEIdentity),
		"certificates": map[string]any{
			"TCB-Info-Issuer-Chain":             url.PathEscape(string(c.TCBInfoChain)),
			"SGX-Enclave-Identity-Issuer-Chain": url.PathEscape(string(c.QEIdentityChain)),
		},
		"rootcacrl": hex.EncodeToString(c.RootCRL),
	}}
}

// CollateralJSON returns the platform's collateral in the form of Intel's
// PcsClientTool, as in trust/tdx-collateral.json. It is current for 10 days or
// more: this and every quote sign it anew in time.
func (p *Platform) CollateralJSON() ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.keepCurrent(); err != nil {
		return nil, err
	}
	return slices.Clone(p.collateral), nil
}

// keepCurrent signs and publishes collateral anew when it is time. The caller
// holds mu.
func (p *Platform) keepCurrent() error {
	if p.now().Before(p.refresh) {
		return nil
	}
	t := p.TCB()
	c, err := p.Collateral(t)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(c.File(p.FMSPC(), p.caKind()), "", "  ")
	if err != nil {
		return fmt.Errorf("encoding collateral: %w", err)
	}
	if err := identity.Publish(p.dir, collateralFile, text); err != nil {
		return err
	}
	p.collateral, p.refresh = text, t.NextUpdate.Add(-collateralSpare)
	return nil
}

// caKind is "platform" or "processor", as in Intel's API.
func (p *Platform) caKind() string {
	if strings.Contains(p.keys.CA.Subject.CommonName, "Processor") {
		return "processor"
	}
	return "platform"
}
