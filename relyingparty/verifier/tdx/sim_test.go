package tdx

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var (
	le      = binary.LittleEndian
	simTime = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	digest  = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
)

// fixed is a source with one answer.
type fixed struct {
	c     *Collateral
	err   error
	asked atomic.Int32
	last  Platform
}

func (f *fixed) Collateral(_ context.Context, p Platform) (*Collateral, error) {
	f.asked.Add(1)
	f.last = p
	return f.c, f.err
}

// simulator makes quotes and collateral under a root of its own.
type simulator struct {
	t                              testing.TB
	root, ca, pck, signer          *x509.Certificate
	rootKey, caKey, pckKey, tcbKey *ecdsa.PrivateKey
	attestKey                      *ecdsa.PrivateKey
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newSimulator(t testing.TB) *simulator {
	t.Helper()
	s := &simulator{t: t, rootKey: newKey(t), caKey: newKey(t), pckKey: newKey(t), tcbKey: newKey(t), attestKey: newKey(t)}
	s.root = s.certificate("Test SGX Root CA", 1, s.rootKey, nil, s.rootKey, true)
	s.ca = s.certificate("Intel SGX PCK Platform CA", 2, s.caKey, s.root, s.rootKey, true)
	s.pck = s.certificate("Intel SGX PCK Certificate", 3, s.pckKey, s.ca, s.caKey, false, pckExtension(t))
	s.signer = s.certificate("Intel SGX TCB Signing", 4, s.tcbKey, s.root, s.rootKey, false)
	return s
}

func (s *simulator) certificate(name string, serial int64, key *ecdsa.PrivateKey, issuer *x509.Certificate, by *ecdsa.PrivateKey, ca bool, ext ...pkix.Extension) *x509.Certificate {
	s.t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: ca, BasicConstraintsValid: true,
		NotBefore: simTime.AddDate(-1, 0, 0), NotAfter: simTime.AddDate(1, 0, 0), ExtraExtensions: ext,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if issuer == nil {
		issuer = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), by)
	if err != nil {
		s.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatal(err)
	}
	return cert
}

// pckExtension is that of a platform with FMSPC 010203040506 and all versions 5.
func pckExtension(t testing.TB) pkix.Extension {
	t.Helper()
	type pair struct {
		ID    asn1.ObjectIdentifier
		Value any
	}
	oid := func(n ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidSGX), n...) }
	seq := func(pairs []pair) asn1.RawValue {
		var body []byte
		for _, p := range pairs {
			der, err := asn1.Marshal(p)
			if raw, ok := p.Value.(asn1.RawValue); ok {
				der, err = asn1.Marshal(struct {
					ID    asn1.ObjectIdentifier
					Value asn1.RawValue
				}{p.ID, raw})
			}
			if err != nil {
				t.Fatal(err)
			}
			body = append(body, der...)
		}
		der, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{FullBytes: der}
	}
	marshal := func(v any) asn1.RawValue {
		der, err := asn1.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return asn1.RawValue{FullBytes: der}
	}
	var tcb []pair
	for i := range 17 {
		tcb = append(tcb, pair{oid(2, i+1), marshal(5)})
	}
	tcb = append(tcb, pair{oid(2, 18), marshal(make([]byte, 16))})
	config := seq([]pair{{oid(7, 1), marshal(true)}, {oid(7, 2), marshal(false)}, {oid(7, 3), marshal(true)}})
	all := seq([]pair{
		{oid(1), marshal(bytes.Repeat([]byte{0xAA}, 16))}, {oid(2), seq(tcb)}, {oid(3), marshal([]byte{0, 0})},
		{oid(4), marshal([]byte{1, 2, 3, 4, 5, 6})}, {oid(5), marshal(asn1.Enumerated(1))},
		{oid(6), marshal([]byte("fedcba9876543210"))}, {oid(7), config},
	})
	return pkix.Extension{Id: oidSGX, Value: all.FullBytes}
}

// model is what the tests vary in a quote.
type model struct {
	version, bodyType  uint16
	svn, svn2          []byte
	data, init         []byte
	debug              bool
	qeSVN              uint16
	qeSigner           byte
	rtmrs              [4][]byte
	chain              []byte
	tee                uint32
	otherKey, otherPCK bool
}

func (s *simulator) model() model {
	return model{
		version: 4, svn: append([]byte{5, 0}, bytes.Repeat([]byte{5}, 14)...), data: digest, init: digest, qeSVN: 4, qeSigner: 0x51,
		chain: pemOf(s.pck, s.ca, s.root), tee: teeTDX,
	}
}

func pemOf(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func sign(t testing.TB, key *ecdsa.PrivateKey, message []byte) []byte {
	t.Helper()
	hash := sha256.Sum256(message)
	r, s, err := ecdsa.Sign(rand.Reader, key, hash[:])
	if err != nil {
		t.Fatal(err)
	}
	out := make([]byte, 64)
	r.FillBytes(out[:32])
	s.FillBytes(out[32:])
	return out
}

// intelQE is the vendor id of Intel's quoting enclaves.
var intelQE = []byte{0x93, 0x9A, 0x72, 0x33, 0xF7, 0x9C, 0x4C, 0xA9, 0x94, 0x0A, 0x0D, 0xB3, 0x95, 0x7F, 0x06, 0x07}

func (s *simulator) quote(m model) []byte {
	s.t.Helper()
	header := le.AppendUint16(nil, m.version)
	header = le.AppendUint16(header, keyP256)
	header = append(le.AppendUint32(header, m.tee), make([]byte, 4)...)
	header = append(append(header, intelQE...), make([]byte, 20)...)
	body := make([]byte, bodySize10)
	copy(body, m.svn)
	if m.debug {
		body[120] = 1
	}
	copy(body[184:232], m.init)
	for i, r := range m.rtmrs {
		copy(body[328+48*i:], r)
	}
	copy(body[520:], m.data)
	if m.version == quoteVersion5 {
		if m.bodyType == bodyType15 {
			body = append(body, append(slices.Clone(m.svn2), make([]byte, 48)...)...)
		}
		header = le.AppendUint32(le.AppendUint16(header, m.bodyType), uint32(len(body)))
	}
	signed := append(header, body...)
	point, err := s.attestKey.PublicKey.Bytes()
	if err != nil {
		s.t.Fatal(err)
	}
	signer, pck := s.attestKey, s.pckKey
	if m.otherKey {
		signer = newKey(s.t)
	}
	if m.otherPCK {
		pck = newKey(s.t)
	}
	auth := []byte("authentication data")
	qe := make([]byte, qeReportSize)
	qe[48], qe[128] = 0x11, m.qeSigner
	le.PutUint16(qe[256:], 2)
	le.PutUint16(qe[258:], m.qeSVN)
	bound := sha256.Sum256(append(slices.Clone(point[1:]), auth...))
	copy(qe[320:], bound[:])
	cert := append(qe, sign(s.t, pck, qe)...)
	cert = append(le.AppendUint16(cert, uint16(len(auth))), auth...)
	cert = append(le.AppendUint32(le.AppendUint16(cert, certPCKChain), uint32(len(m.chain))), m.chain...)
	sig := append(sign(s.t, signer, signed), point[1:]...)
	sig = append(le.AppendUint32(le.AppendUint16(sig, certQEReport), uint32(len(cert))), cert...)
	return append(le.AppendUint32(signed, uint32(len(sig))), sig...)
}

// levels are the JSON of TCB levels: for each, the version that all parts must
// reach, and the status.
func levels(module bool, pairs ...any) string {
	var out []string
	for i := 0; i < len(pairs); i += 2 {
		svn, status := pairs[i].(int), pairs[i+1].(string)
		tcb := fmt.Sprintf(`{"isvsvn":%d}`, svn)
		if !module {
			parts := strings.TrimSuffix(strings.Repeat(fmt.Sprintf(`{"svn":%d},`, svn), 16), ",")
			// the second version of TDX tells the generation of the module
			tdx := fmt.Sprintf(`{"svn":%d},{"svn":0}`, svn) + strings.Repeat(fmt.Sprintf(`,{"svn":%d}`, svn), 14)
			tcb = fmt.Sprintf(`{"sgxtcbcomponents":[%s],"pcesvn":%d,"tdxtcbcomponents":[%s]}`, parts, svn, tdx)
		}
		out = append(out, fmt.Sprintf(`{"tcb":%s,"tcbDate":"2025-0%d-01T00:00:00Z","tcbStatus":%q,"advisoryIDs":["SA-%d"]}`, tcb, svn+1, status, svn))
	}
	return "[" + strings.Join(out, ",") + "]"
}

// tcbModel is what the tests vary in collateral.
type tcbModel struct {
	platform, module, qe                 string
	fmspc, id                            string
	revokedCA, revokedPCK, revokedSigner bool
	nextUpdate                           time.Time
}

func goodTCB() tcbModel {
	return tcbModel{
		platform: levels(false, 5, "UpToDate", 2, "OutOfDate"), module: levels(true, 5, "UpToDate", 2, "OutOfDate"), qe: levels(true, 4, "UpToDate", 1, "OutOfDate"),
		fmspc: "010203040506", id: "TDX", nextUpdate: simTime.AddDate(0, 1, 0),
	}
}

func (s *simulator) collateral(m tcbModel) *Collateral {
	s.t.Helper()
	const dates = `"issueDate":"2026-02-01T00:00:00Z","nextUpdate":%q,"tcbEvaluationDataNumber":%d`
	next := m.nextUpdate.Format(time.RFC3339)
	zeros := strings.Repeat("00", 48)
	module := fmt.Sprintf(`"mrsigner":%q,"attributes":"0000000000000000","attributesMask":"FFFFFFFFFFFFFFFF"`, zeros)
	info := fmt.Sprintf(`{"id":%q,"version":3,`+dates+`,"fmspc":%q,"pceId":"0000","tcbType":0,"tdxModule":{%s},"tdxModuleIdentities":[{"id":"TDX_01",%s,"tcbLevels":%s}],"tcbLevels":%s}`,
		m.id, next, 17, m.fmspc, module, module, m.module, m.platform)
	identity := fmt.Sprintf(`{"id":"TD_QE","version":2,`+dates+`,"miscselect":"00000000","miscselectMask":"FFFFFFFF","attributes":"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000","mrsigner":"51%s","isvprodid":2,"tcbLevels":%s}`,
		next, 18, strings.Repeat("00", 31), m.qe)
	document := func(name, text string) []byte {
		return fmt.Appendf(nil, `{%q:%s,"signature":%q}`, name, text, hex.EncodeToString(sign(s.t, s.tcbKey, []byte(text))))
	}
	crl := func(issuer *x509.Certificate, key *ecdsa.PrivateKey, serials ...int64) []byte {
		var entries []x509.RevocationListEntry
		for _, n := range serials {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: big.NewInt(n), RevocationTime: simTime})
		}
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(7), ThisUpdate: simTime.AddDate(0, -1, 0), NextUpdate: simTime.AddDate(0, 1, 0), RevokedCertificateEntries: entries,
		}, issuer, key)
		if err != nil {
			s.t.Fatal(err)
		}
		return der
	}
	var rootRevoked, pckRevoked []int64
	if m.revokedCA {
		rootRevoked = append(rootRevoked, 2)
	}
	if m.revokedSigner {
		rootRevoked = append(rootRevoked, 4)
	}
	if m.revokedPCK {
		pckRevoked = append(pckRevoked, 3)
	}
	chain := pemOf(s.signer, s.root)
	return &Collateral{
		TCBInfo: document("tcbInfo", info), TCBInfoChain: chain, QEIdentity: document("enclaveIdentity", identity), QEIdentityChain: chain,
		PCKCRL: crl(s.ca, s.caKey, pckRevoked...), RootCRL: crl(s.root, s.rootKey, rootRevoked...),
	}
}

func (s *simulator) verifier(c *Collateral) *Verifier {
	s.t.Helper()
	v, err := New(Config{Roots: []*x509.Certificate{s.root}, Source: &fixed{c: c}, Now: func() time.Time { return simTime }})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

// toJSON is the evidence of the attester of guest-components.
func toJSON(quote, log []byte) json.RawMessage {
	text := "null"
	if log != nil {
		text = fmt.Sprintf("%q", base64.StdEncoding.EncodeToString(log))
	}
	return fmt.Appendf(nil, `{"cc_eventlog":%s,"quote":%q}`, text, base64.StdEncoding.EncodeToString(quote))
}
