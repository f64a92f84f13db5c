package tdx

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	"github.com/sealpod/sealpod/podvm"
)

// The certification authorities of PCK certificates, as in Intel's API.
const (
	platformCA  = "platform"
	processorCA = "processor"
)

var caNames = map[string]string{
	"Intel SGX PCK Platform CA":  platformCA,
	"Intel SGX PCK Processor CA": processorCA,
}

// chain is the verified way from a PCK certificate to a trusted root.
type chain struct {
	pck, ca, root *x509.Certificate
	caType        string
}

// parsePEM reads exactly n certificates. A zero may follow them.
func parsePEM(text []byte, n int) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := bytes.TrimRight(text, "\x00\r\n \t")
	for len(rest) > 0 {
		block, more := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(certs) == n {
			return nil, fmt.Errorf("not %d certificates in PEM", n)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("parsing certificate %d: %w", len(certs), err)
		}
		certs, rest = append(certs, cert), more
	}
	if len(certs) != n {
		return nil, fmt.Errorf("%d certificates, must be %d", len(certs), n)
	}
	return certs, nil
}

// parseChain verifies the PCK chain of a quote up to one of the roots, but for
// its dates.
func parseChain(text []byte, roots []*x509.Certificate) (*chain, error) {
	certs, err := parsePEM(text, 3)
	if err != nil {
		return nil, err
	}
	c := &chain{pck: certs[0], ca: certs[1], root: certs[2]}
	if !slices.ContainsFunc(roots, c.root.Equal) {
		return nil, fmt.Errorf("the root %q is not trusted: evidence of a simulator, or of other hardware than configured", podvm.Printable(c.root.Subject.CommonName, 64))
	}
	if c.caType = caNames[c.ca.Subject.CommonName]; c.caType == "" {
		return nil, fmt.Errorf("%q is not a PCK certification authority", podvm.Printable(c.ca.Subject.CommonName, 64))
	}
	if err := issuedBy(c.ca, c.root); err != nil {
		return nil, fmt.Errorf("PCK certification authority: %w", err)
	}
	if err := issuedBy(c.pck, c.ca); err != nil {
		return nil, fmt.Errorf("PCK certificate: %w", err)
	}
	return c, nil
}

func issuedBy(cert, issuer *x509.Certificate) error {
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("not issued by %q", podvm.Printable(issuer.Subject.CommonName, 64))
	}
	return cert.CheckSignatureFrom(issuer)
}

// pckInfo is what Intel's extension says about a platform.
type pckInfo struct {
	fmspc, pceID, ppid, instance []byte // 6, 2, 16 and 16 bytes; instance of Platform CA only
	components                   [16]uint8
	pceSVN                       uint16
	sgxType                      int
	// dynamic, cached and smt are of Platform CA only.
	multi                bool
	dynamic, cached, smt bool
}

// oidSGX is the extension; its members are numbered below it.
var oidSGX = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}

// member is SEQUENCE { OID, ANY }.
type member struct {
	ID    asn1.ObjectIdentifier
	Value asn1.RawValue
}

// members reads SEQUENCE OF member by the last number of each OID.
func members(der []byte) (map[int]asn1.RawValue, error) {
	var list []member
	if rest, err := asn1.Unmarshal(der, &list); err != nil || len(rest) > 0 {
		return nil, errors.Join(errors.New("malformed list in the SGX extension"), err)
	}
	out := map[int]asn1.RawValue{}
	for _, m := range list {
		if len(m.ID) == 0 {
			return nil, errors.New("malformed list in the SGX extension")
		}
		out[m.ID[len(m.ID)-1]] = m.Value
	}
	return out, nil
}

// parsePCK reads the SGX extension of a PCK certificate. Source: Intel "SGX PCK
// Certificate and CRL Profile" §1.3.5.
func parsePCK(cert *x509.Certificate) (*pckInfo, error) {
	at := slices.IndexFunc(cert.Extensions, func(e pkix.Extension) bool { return e.Id.Equal(oidSGX) })
	if at < 0 {
		return nil, errors.New("the PCK certificate has no SGX extension")
	}
	top, err := members(cert.Extensions[at].Value)
	if err != nil {
		return nil, err
	}
	tcb, err := members(top[2].FullBytes)
	if err != nil {
		return nil, err
	}
	var p pckInfo
	var kind asn1.Enumerated
	errs := []error{
		octetString(top[1], 16, &p.ppid), octetString(top[3], 2, &p.pceID), octetString(top[4], 6, &p.fmspc),
		value(top[5], &kind),
	}
	for i := range p.components {
		var n int
		errs = append(errs, value(tcb[i+1], &n), limit(n, 255))
		p.components[i] = uint8(n)
	}
	var svn int
	errs = append(errs, value(tcb[17], &svn), limit(svn, 65535))
	p.pceSVN, p.sgxType = uint16(svn), int(kind)
	if config, ok := top[7]; ok {
		p.multi = true
		flags, err := members(config.FullBytes)
		errs = append(errs, err, octetString(top[6], 16, &p.instance),
			value(flags[1], &p.dynamic), value(flags[2], &p.cached), value(flags[3], &p.smt))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("SGX extension of the PCK certificate: %w", err)
	}
	return &p, nil
}

func value(raw asn1.RawValue, to any) error {
	rest, err := asn1.Unmarshal(raw.FullBytes, to)
	if err == nil && len(rest) > 0 {
		return errors.New("bytes behind a value")
	}
	return err
}

func octetString(raw asn1.RawValue, size int, to *[]byte) error {
	if err := value(raw, to); err != nil {
		return err
	}
	if len(*to) != size {
		return fmt.Errorf("%d bytes where %d belong", len(*to), size)
	}
	return nil
}

func limit(n, most int) error {
	if n < 0 || n > most {
		return fmt.Errorf("version %d is not between 0 and %d", n, most)
	}
	return nil
}
