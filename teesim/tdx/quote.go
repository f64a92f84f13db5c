package tdx

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
)

// Parts is what a quote is made of. Platform.Parts fills it in as it should be;
// a test changes what it wants to be wrong.
type Parts struct {
	Header Header
	// BodyType is that of version 5: 2 (TDX 1.0) or 3 (TDX 1.5). Other values
	// get the body of TDX 1.0.
	BodyType uint16
	Body     Body
	// Enclave is the report of the quoting enclave; its report data is the
	// hash of attestation key and Auth.
	Enclave EnclaveReport
	Auth    []byte
	// Chain is the PCK chain in PEM.
	Chain []byte
	// Attestation signs the quote; the key in the quote is the platform's.
	Attestation *ecdsa.PrivateKey
	// PCK signs the report of the quoting enclave.
	PCK *ecdsa.PrivateKey
}

// Parts returns those of a quote with that body.
func (p *Platform) Parts(b Body) Parts {
	parts := Parts{
		Header: Header{Version: p.version, AttestationKeyType: keyECDSAP256, TEEType: teeTDX, QEVendorID: intelQE},
		Body:   b,
		Enclave: EnclaveReport{
			Attributes: [16]byte{0x11}, // INIT and PROVISION_KEY
			MREnclave:  sha256.Sum256([]byte("simulated quoting enclave")),
			MRSigner:   [32]byte{0x51}, ISVProdID: 2, ISVSVN: enclaveSVN,
		},
		Auth:  slices.Repeat([]byte{0x20}, 32),
		Chain: p.keys.Chain(), Attestation: p.keys.attest, PCK: p.keys.pck,
	}
	if p.version == 5 {
		parts.BodyType = bodyTypeTDX15
	}
	return parts
}

// Sign makes the quote of parts. Source: DCAP A.3.
func (p *Platform) Sign(parts Parts) ([]byte, error) {
	certified, err := p.certify(parts)
	if err != nil {
		return nil, err
	}
	return p.sign(parts, certified)
}

// sign makes a quote with that certification data.
func (p *Platform) sign(parts Parts, certified []byte) ([]byte, error) {
	le := binary.LittleEndian
	signed, body := encode(parts.Header), encode(parts.Body)
	if parts.BodyType != bodyTypeTDX15 {
		body = body[:bodySize10]
	}
	if parts.Header.Version == 5 {
		signed = le.AppendUint32(le.AppendUint16(signed, parts.BodyType), uint32(len(body)))
	}
	signed = append(signed, body...)
	signature, err := sign(parts.Attestation, signed)
	if err != nil {
		return nil, err
	}
	point, err := p.point()
	if err != nil {
		return nil, err
	}
	data := append(signature, point...)
	data = append(le.AppendUint32(le.AppendUint16(data, certQEReport), uint32(len(certified))), certified...)
	return append(le.AppendUint32(signed, uint32(len(data))), data...), nil
}

// certify makes the QE report certification data: the quoting enclave vouches
// for the attestation key, and the PCK for the quoting enclave.
func (p *Platform) certify(parts Parts) ([]byte, error) {
	point, err := p.point()
	if err != nil {
		return nil, err
	}
	bound := sha256.Sum256(slices.Concat(point, parts.Auth))
	copy(parts.Enclave.ReportData[:], bound[:])
	report := encode(parts.Enclave)
	signature, err := sign(parts.PCK, report)
	if err != nil {
		return nil, fmt.Errorf("certifying the quoting enclave: %w", err)
	}
	le := binary.LittleEndian
	out := slices.Concat(report, signature)
	out = append(le.AppendUint16(out, uint16(len(parts.Auth))), parts.Auth...)
	return append(le.AppendUint32(le.AppendUint16(out, certPCKChain), uint32(len(parts.Chain))), parts.Chain...), nil
}

// point returns the attestation key as it stands in quotes: X and Y, 64 bytes.
func (p *Platform) point() ([]byte, error) {
	point, err := p.keys.attest.PublicKey.Bytes()
	if err != nil {
		return nil, fmt.Errorf("encoding the attestation key: %w", err)
	}
	return point[1:], nil
}

// Quote returns a quote over a TD and that REPORTDATA.
func (p *Platform) Quote(t *TD, reportData [ReportDataSize]byte) ([]byte, error) {
	report := t.Report(reportData)
	return p.QuoteOfReport(report[:])
}

// QuoteOfReport returns a quote over a TDREPORT, which the quoting enclave
// checks: it must be of this platform. Bytes that are not are ErrReport.
func (p *Platform) QuoteOfReport(raw []byte) ([]byte, error) {
	r, err := openReport(p.keys.report, raw)
	if err != nil {
		return nil, fmt.Errorf("quoting: %w", err)
	}
	p.mu.Lock()
	err = p.keepCurrent() // a quote without collateral is worth nothing
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("quoting: %w", err)
	}
	quote, err := p.sign(p.Parts(r.body()), p.certified)
	if err != nil {
		return nil, fmt.Errorf("quoting: %w", err)
	}
	return quote, nil
}
