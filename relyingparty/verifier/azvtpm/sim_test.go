package azvtpm

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote/quotetest"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
	simsnp "github.com/sealpod/sealpod/teesim/snp"
	simtdx "github.com/sealpod/sealpod/teesim/tdx"
)

var (
	reportData = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")
	initData   = sha256.Sum256([]byte("init data"))
)

// vm is a confidential VM: hardware, and what a paravisor makes of it.
type vm struct {
	t    testing.TB
	kind wire.Kind
	tpm  *quotetest.TPM
	vmpl uint32

	chip  *simsnp.Chip
	guest *simsnp.Guest

	platform *simtdx.Platform
	td       *simtdx.TD
	dir      string
}

// The options of newVM.
type options struct{ debug, stale bool }

func newVM(t testing.TB, kind wire.Kind, o options) *vm {
	t.Helper()
	v := &vm{t: t, kind: kind, tpm: quotetest.New(t), dir: t.TempDir()}
	v.tpm.Extend(8, initData[:])
	var err error
	if kind == wire.SNP {
		v.chip, err = simsnp.Open("", simsnp.Options{})
		v.guest = simsnp.NewGuest(simsnp.Launch{Debug: o.debug, StaleTCB: o.stale})
	} else {
		v.platform, err = simtdx.Open(v.dir, simtdx.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if kind == wire.TDX {
		v.td = v.platform.NewTD(simtdx.Launch{Paravisor: true, Debug: o.debug, StaleTCB: o.stale})
	}
	return v
}

// bare returns a verifier of the hardware that trusts its maker: one of *snp
// and *tdx is nil.
func (v *vm) bare() (*snp.Verifier, *tdx.Verifier) {
	v.t.Helper()
	if v.kind == wire.SNP {
		ark, ask, asvk := v.chip.Roots()
		bare, err := snp.New(snp.Config{Roots: map[string]snp.Root{v.chip.Product(): {ARK: ark, ASK: ask, ASVK: asvk}}})
		if err != nil {
			v.t.Fatal(err)
		}
		return bare, nil
	}
	bare, err := tdx.New(tdx.Config{
		Roots: []*x509.Certificate{v.platform.Root()}, Source: tdx.File{Path: filepath.Join(v.dir, "trust", "tdx-collateral.json")},
	})
	if err != nil {
		v.t.Fatal(err)
	}
	return nil, bare
}

func (v *vm) verifier() *Verifier {
	v.t.Helper()
	snpVerifier, tdxVerifier := v.bare()
	if v.kind == wire.SNP {
		return NewSNP(snpVerifier)
	}
	return NewTDX(tdxVerifier)
}

// seal returns a hardware report over claims, and what comes with it: a VCEK
// or a quote. The tail are the bytes of report data after the hash.
func (v *vm) seal(claims []byte, tail ...byte) (report, hardware []byte) {
	v.t.Helper()
	sum := sha256.Sum256(claims)
	var data [64]byte
	copy(data[:], append(sum[:], tail...))
	if v.kind == wire.TDX {
		report := v.td.Report(data)
		quote, err := v.platform.QuoteOfReport(report[:])
		if err != nil {
			v.t.Fatal(err)
		}
		return report[:], quote
	}
	report, err := v.chip.Report(v.guest, data, v.vmpl)
	if err != nil {
		v.t.Fatal(err)
	}
	key, err := v.chip.VCEK(v.chip.TCB(v.guest))
	if err != nil {
		v.t.Fatal(err)
	}
	return report, key.Raw
}

func jwk(id string, key *rsa.PublicKey) string {
	b64 := base64.RawURLEncoding
	return fmt.Sprintf(`{"kid":%q,"key_ops":["sign"],"kty":"RSA","e":%q,"n":%q}`, id,
		b64.EncodeToString(big.NewInt(int64(key.E)).Bytes()), b64.EncodeToString(key.N.Bytes()))
}

// claimsOf are the claims of a paravisor with those keys.
func claimsOf(userData []byte, keys ...string) []byte {
	padded := make([]byte, 64)
	copy(padded, userData)
	return fmt.Appendf(nil, `{"keys":[%s],"vm-configuration":{"console-enabled":true,"secure-boot":true,"tpm-enabled":true,"vmUniqueId":"26F8BC30"},"user-data":"%X"}`,
		strings.Join(keys, ","), padded)
}

// model is evidence before it is JSON.
type model struct {
	kind               wire.Kind
	version            int
	message, signature []byte
	pcrs               [][]byte
	claims             []byte // of the HCL report
	report             []byte // of the hardware, in the HCL report
	hardware           []byte // VCEK or quote
	eventLog           string
	edit               func(hcl []byte) []byte // nil leaves the HCL report as it is
}

// model returns good evidence of version 2.
func (v *vm) model() model {
	v.t.Helper()
	m := model{kind: v.kind, version: 2, pcrs: v.tpm.Bytes()}
	m.message, m.signature = v.tpm.Quote(reportData)
	m.claims = claimsOf(reportData, jwk("HCLEkPub", &v.tpm.Another().AK.PublicKey), jwk("HCLAkPub", &v.tpm.AK.PublicKey))
	m.report, m.hardware = v.seal(m.claims)
	return m
}

// resealed returns good evidence but for other claims.
func (v *vm) resealed(claims []byte, tail ...byte) model {
	m := v.model()
	m.claims = claims
	m.report, m.hardware = v.seal(claims, tail...)
	return m
}

// hcl lays the HCL report out, in as many bytes as the NV index has.
func (m model) hcl() []byte {
	le := binary.LittleEndian
	out := []byte("HCLA")
	for _, n := range []uint32{2, uint32(1236 + len(m.claims)), 2, 0, 0, 0, 0} {
		out = le.AppendUint32(out, n)
	}
	out = append(append(out, m.report...), make([]byte, 1184-len(m.report))...)
	for _, n := range []uint32{uint32(20 + len(m.claims)), 1, uint32(m.kind), 1, uint32(len(m.claims))} {
		out = le.AppendUint32(out, n)
	}
	out = append(out, m.claims...)
	out = append(out, make([]byte, max(0, 2600-len(out)))...)
	if m.edit != nil {
		out = m.edit(out)
	}
	return out
}

func numbers(b []byte) []int {
	out := make([]int, len(b))
	for i, c := range b {
		out[i] = int(c)
	}
	return out
}

// json writes the evidence as the attesters of guest-components do, and did in
// version 0.
func (m model) json(t testing.TB) json.RawMessage {
	t.Helper()
	name := map[wire.Kind]string{wire.SNP: "vcek", wire.TDX: "td_quote"}[m.kind]
	var doc map[string]any
	if m.version == 0 {
		var pcrs [][]int
		for _, p := range m.pcrs {
			pcrs = append(pcrs, numbers(p))
		}
		quote := map[string]any{"signature": numbers(m.signature), "message": numbers(m.message), "pcrs": pcrs}
		doc = map[string]any{"tpm_quote": quote, "hcl_report": numbers(m.hcl()), "td_quote": numbers(m.hardware)}
		if m.kind == wire.SNP {
			vcek := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.hardware})
			doc = map[string]any{"quote": quote, "report": numbers(m.hcl()), "vcek": string(vcek)}
		}
	} else {
		var pcrs []string
		for _, p := range m.pcrs {
			pcrs = append(pcrs, hex.EncodeToString(p))
		}
		doc = map[string]any{
			"version":    m.version,
			"tpm_quote":  map[string]any{"signature": hex.EncodeToString(m.signature), "message": hex.EncodeToString(m.message), "pcrs": pcrs},
			"hcl_report": base64.URLEncoding.EncodeToString(m.hcl()), name: base64.URLEncoding.EncodeToString(m.hardware),
		}
		if m.eventLog != "" {
			doc["cc_eventlog"] = m.eventLog
		}
	}
	text, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// logEvent is an event of the attestation agent.
type logEvent struct {
	register uint32
	text     string
}

func (e logEvent) data() []byte {
	le := binary.LittleEndian
	return append(le.AppendUint32(le.AppendUint32(nil, 0x4141454C), uint32(len(e.text))), e.text...)
}

// logOf is a log of SHA-256 with its header, in the base64 of evidence.
func logOf(events ...logEvent) string {
	le := binary.LittleEndian
	out := le.AppendUint32(le.AppendUint32(nil, 0), 3)
	out = le.AppendUint32(append(out, make([]byte, 20)...), 24+4+4+1)
	out = le.AppendUint32(append(out, make([]byte, 24)...), 1)
	out = append(le.AppendUint16(le.AppendUint16(out, 0x0B), 32), 0)
	for _, e := range events {
		sum := sha256.Sum256(e.data())
		out = le.AppendUint32(le.AppendUint32(le.AppendUint32(out, e.register), 6), 1)
		out = append(le.AppendUint16(out, 0x0B), sum[:]...)
		out = append(le.AppendUint32(out, uint32(len(e.data()))), e.data()...)
	}
	return base64.StdEncoding.EncodeToString(append(out, slices.Repeat([]byte{0xFF}, 8)...))
}
