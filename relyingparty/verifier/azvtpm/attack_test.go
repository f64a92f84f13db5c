package azvtpm

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	wire "github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/internal/tpmquote/quotetest"
	simsnp "github.com/sealpod/sealpod/teesim/snp"
	simtdx "github.com/sealpod/sealpod/teesim/tdx"
)

func sum(b []byte) []byte {
	s := sha256.Sum256(b)
	return s[:]
}

func refused(t *testing.T, name string, v *Verifier, raw json.RawMessage, want verifier.Expected, text string) {
	t.Helper()
	got, err := v.Verify(t.Context(), raw, want)
	if !errors.Is(err, verifier.ErrEvidence) || !strings.Contains(err.Error(), text) {
		t.Errorf("%s: %s: %v, %v", v.TEE(), name, got, err)
	}
}

// attack is evidence that must be refused with that text.
type attack struct {
	m    model
	text string
}

func run(t *testing.T, v *vm, attacks map[string]attack) {
	t.Helper()
	for name, a := range attacks {
		refused(t, name, v.verifier(), a.m.json(t), bound, a.text)
	}
	if _, err := v.verifier().Verify(t.Context(), v.model().json(t), bound); err != nil {
		t.Errorf("the unchanged evidence: %v", err)
	}
}

// changed returns good evidence after a change.
func (v *vm) changed(f func(*model)) model {
	m := v.model()
	f(&m)
	return m
}

// requoted returns good evidence but for a quote that the vTPM signed over
// something else.
func (v *vm) requoted(m *quotetest.TPM, f func(*tpm2.TPMSAttest)) model {
	return v.changed(func(e *model) {
		a := m.Attest(reportData)
		f(&a)
		e.message = tpm2.Marshal(a)
		e.signature = m.Sign(e.message)
	})
}

func TestNotForThisHandshake(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		raw := v.model().json(t)
		nonce, init := slices.Clone(reportData), slices.Clone(initData[:])
		nonce[47] ^= 1
		init[31] ^= 1
		for name, c := range map[string]struct {
			want verifier.Expected
			text string
		}{
			"wrong nonce":               {verifier.Expected{ReportData: nonce}, "another nonce"},
			"replayed":                  {verifier.Expected{ReportData: []byte("digest of the next session")}, "another nonce"},
			"beginning of the nonce":    {verifier.Expected{ReportData: reportData[:32]}, "another nonce"},
			"nothing expected":          {verifier.Expected{}, "0 bytes"},
			"report data over 64 bytes": {verifier.Expected{ReportData: make([]byte, 65)}, "65 bytes"},
			"init data off by one byte": {verifier.Expected{ReportData: reportData, InitData: init}, "other init data"},
			"init data of SHA-384":      {verifier.Expected{ReportData: reportData, InitData: make([]byte, 48)}, "48 bytes"},
		} {
			refused(t, name, v.verifier(), raw, c.want, c.text)
		}
	}
}

func TestBadQuote(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		other := v.tpm.Another()
		few := sha256.Sum256(bytes.Join(v.tpm.Bytes()[:16], nil))
		run(t, v, map[string]attack{
			"truncated quote":       {v.changed(func(m *model) { m.message = m.message[:len(m.message)-1] }), "not signed"},
			"no quote":              {v.changed(func(m *model) { m.message = nil }), "not signed"},
			"signed by another key": {v.changed(func(m *model) { m.signature = other.Sign(m.message) }), "not signed by the attestation key"},
			"no signature":          {v.changed(func(m *model) { m.signature = nil }), "not signed"},
			"PCR changed":           {v.changed(func(m *model) { m.pcrs[11][0] ^= 1 }), "not those it covers"},
			"PCR missing":           {v.changed(func(m *model) { m.pcrs = m.pcrs[:23] }), "23 registers"},
			"25 PCRs":               {v.changed(func(m *model) { m.pcrs = append(m.pcrs, m.pcrs[0]) }), "25 registers"},
			"PCR of 31 bytes":       {v.changed(func(m *model) { m.pcrs[5] = m.pcrs[5][1:] }), "PCR 5 has 31 bytes"},
			"certification of a key": {v.requoted(v.tpm, func(a *tpm2.TPMSAttest) {
				a.Type, a.Attested = tpm2.TPMSTAttestCertify, tpm2.NewTPMUAttest(tpm2.TPMSTAttestCertify, &tpm2.TPMSCertifyInfo{})
			}), "type 0x8017"},
			"fewer PCRs": {v.requoted(v.tpm, func(a *tpm2.TPMSAttest) { a.Attested = v.tpm.Quoted(tpm2.TPMAlgSHA256, []byte{255, 255, 0}, few[:]) }), "leaves registers out"},
			"SHA-1 bank": {v.requoted(v.tpm, func(a *tpm2.TPMSAttest) {
				a.Attested = v.tpm.Quoted(tpm2.TPMAlgSHA1, []byte{255, 255, 255}, make([]byte, 20))
			}), "bank 0x4"},
			"no magic":    {v.requoted(v.tpm, func(a *tpm2.TPMSAttest) { a.Magic = 0 }), "magic"},
			"other nonce": {v.requoted(v.tpm, func(a *tpm2.TPMSAttest) { a.ExtraData.Buffer = reportData[1:] }), "another nonce"},
		})
	}
}

func TestBadClaims(t *testing.T) {
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		ours, other := jwk("HCLAkPub", &v.tpm.AK.PublicKey), v.tpm.Another()
		theirs := jwk("HCLAkPub", &other.AK.PublicKey)
		neighbour := *v // of the same maker
		if neighbour.guest = simsnp.NewGuest(simsnp.Launch{CommandLine: "other"}); kind == wire.TDX {
			neighbour.td = v.platform.NewTD(simtdx.Launch{CommandLine: "other"})
		}
		nonce := slices.Clone(reportData)
		nonce[0] ^= 1
		forged := v.requoted(other, func(*tpm2.TPMSAttest) {})
		forged.claims = claimsOf(reportData, theirs)
		run(t, v, map[string]attack{
			"key swapped":              {v.changed(func(m *model) { m.claims = claimsOf(reportData, theirs) }), "not signed by the attestation key"},
			"key and quote swapped":    {forged, "not those the hardware report was made for"},
			"one byte of claims":       {v.changed(func(m *model) { m.claims[bytes.Index(m.claims, []byte("26F8"))] = '3' }), "not those the hardware report was made for"},
			"a space more":             {v.changed(func(m *model) { m.claims = append(m.claims, ' ') }), "not those the hardware report was made for"},
			"report of another VM":     {v.changed(func(m *model) { m.report, m.hardware = neighbour.seal(claimsOf(reportData, theirs)) }), "not those the hardware report was made for"},
			"report data has a tail":   {v.resealed(v.model().claims, 1), "not those the hardware report was made for"},
			"user-data of another":     {v.resealed(claimsOf(nonce, ours)), "user-data is not"},
			"user-data of 47 bytes":    {v.resealed(bytes.Replace(claimsOf(reportData, ours), []byte("66"+strings.Repeat("00", 16)), nil, 1)), "user-data is not"},
			"user-data that is absent": {v.resealed([]byte(`{"keys":[` + ours + `]}`)), "user-data is not"},
			"user-data in letters":     {v.resealed([]byte(`{"keys":[` + ours + `],"user-data":"xyz"}`)), "user-data is not"},
			"no keys":                  {v.resealed(claimsOf(reportData)), "no key HCLAkPub"},
			"key of another name":      {v.resealed(claimsOf(reportData, jwk("HCLEkPub", &v.tpm.AK.PublicKey))), "no key HCLAkPub"},
			"two keys":                 {v.resealed(claimsOf(reportData, ours, theirs)), "two keys HCLAkPub"},
			"key of 1024 bits":         {v.resealed(claimsOf(reportData, jwk("HCLAkPub", &weak.PublicKey))), "1024 bits"},
			"key with exponent 3":      {v.resealed(claimsOf(reportData, jwk("HCLAkPub", &rsa.PublicKey{N: v.tpm.AK.N, E: 3}))), "exponent 3"},
			"key with large exponent":  {v.resealed(claimsOf(reportData, jwk("HCLAkPub", &rsa.PublicKey{N: v.tpm.AK.N, E: 1 << 24}))), "exponent of HCLAkPub"},
			"key on a curve":           {v.resealed(claimsOf(reportData, strings.Replace(ours, "RSA", "EC", 1))), "not an RSA key"},
			"modulus in no base64":     {v.resealed(claimsOf(reportData, strings.Replace(ours, `"n":"`, `"n":"=`, 1))), "modulus of HCLAkPub"},
			"keys that are no list":    {v.resealed([]byte(`{"keys":{},"user-data":""}`)), "claims of the HCL report"},
			"claims that are no JSON":  {v.resealed([]byte("claims")), "invalid HCL report"},
			"no claims":                {v.resealed(nil), "invalid HCL report"},
		})
	}
}

func TestBadHCLReport(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		edited := func(f func([]byte) []byte) model { return v.changed(func(m *model) { m.edit = f }) }
		set := func(at int, n uint32) model {
			return edited(func(b []byte) []byte { binary.LittleEndian.PutUint32(b[at:], n); return b })
		}
		attacks := map[string]attack{
			"of the other TEE":      {set(1224, uint32(wire.SNP+wire.TDX-kind)), "HCL report of type"},
			"of VBS":                {set(1224, 1), "report type 1"},
			"hash of SHA-384":       {set(1228, 2), "hash type 2"},
			"other magic":           {set(0, 0), "invalid HCL report"},
			"total length lies":     {set(8, 2600), "lengths"},
			"data length lies":      {set(1216, 20), "lengths"},
			"claims length lies":    {set(1232, 100), "lengths"},
			"claims without end":    {set(1232, 1<<32-1), "lengths"},
			"longer than it can be": {edited(func(b []byte) []byte { return append(b, make([]byte, maxHCL)...) }), "HCL report of 6"},
			"empty":                 {edited(func([]byte) []byte { return nil }), "invalid HCL report"},
		}
		run(t, v, attacks)
		for _, n := range []int{1, 31, 32, 1215, 1216, 1235, 1236, 1500} {
			m := edited(func(b []byte) []byte { return b[:n] })
			refused(t, "truncated", v.verifier(), m.json(t), bound, "invalid HCL report")
		}
	}
}

func TestBadHardware(t *testing.T) {
	v := newVM(t, wire.SNP, options{})
	stranger, sibling := newVM(t, wire.SNP, options{}), newVM(t, wire.SNP, options{stale: true})
	chip, err := v.chip.Endorse(slices.Repeat([]byte{7}, 64), v.chip.TCB(v.guest))
	if err != nil {
		t.Fatal(err)
	}
	below := newVM(t, wire.SNP, options{})
	below.chip, below.vmpl = v.chip, 2
	older, err := v.chip.VCEK(v.chip.TCB(sibling.guest))
	if err != nil {
		t.Fatal(err)
	}
	ark, _, _ := v.chip.Roots()
	run(t, v, map[string]attack{
		"VMPL 2":               {below.model(), "VMPL 2"},
		"of another maker":     {stranger.model(), "not signed by the ASK"},
		"VCEK of another chip": {v.changed(func(m *model) { m.hardware = chip.Certificate.Raw }), "not signed by its endorsement key"},
		"VCEK of old firmware": {v.changed(func(m *model) { m.hardware = older.Raw }), "not signed by its endorsement key"},
		"ARK for a VCEK":       {v.changed(func(m *model) { m.hardware = ark.Raw }), "not signed by the ASK"},
		"VCEK that is none":    {v.changed(func(m *model) { m.hardware = []byte("x") }), "parsing the VCEK"},
		"no VCEK":              {v.changed(func(m *model) { m.hardware = nil }), "no vcek"},
		"forged measurement":   {v.changed(func(m *model) { m.report[0x90] ^= 1 }), "not signed by its endorsement key"},
	})
	v = newVM(t, wire.TDX, options{})
	stranger = newVM(t, wire.TDX, options{})
	run(t, v, map[string]attack{
		"of another maker": {stranger.model(), "root"},
		"truncated quote":  {v.changed(func(m *model) { m.hardware = m.hardware[:1000] }), "truncated"},
		"no quote":         {v.changed(func(m *model) { m.hardware = nil }), "no td_quote"},
		"forged MRTD":      {v.changed(func(m *model) { m.hardware[48+136] ^= 1 }), "TDX quote"},
		"version 3 of SGX": {v.changed(func(m *model) { m.hardware[0] = 3 }), "quote version 3"},
	})
}

func TestEvidenceOfOthers(t *testing.T) {
	snpVM, tdxVM := newVM(t, wire.SNP, options{}), newVM(t, wire.TDX, options{})
	for _, pair := range [][2]*vm{{snpVM, tdxVM}, {tdxVM, snpVM}} {
		v, other := pair[0].verifier(), pair[1].model()
		for other.version = range 3 {
			refused(t, "of the other TEE", v, other.json(t), bound, "reading "+v.TEE()+" evidence")
		}
		other.version = 2
		named := map[wire.Kind][2]string{wire.SNP: {"td_quote", "vcek"}, wire.TDX: {"vcek", "td_quote"}}[pair[0].kind]
		relabelled := strings.Replace(string(other.json(t)), `"`+named[0]+`"`, `"`+named[1]+`"`, 1)
		refused(t, "relabelled", v, json.RawMessage(relabelled), bound, "HCL report of type")
		for name, text := range map[string]string{
			"of bare SNP": `{"attestation_report":{"version":3},"cert_chain":null}`,
			"of bare TDX": `{"quote":"BAAC","cc_eventlog":null}`,
			"of a TPM":    `{"ak_public":"AA==","tpm_quote":{"signature":"AA==","message":"AA==","pcrs":[]}}`,
			"of no TEE":   `{"svn":"1","report_data":"AA=="}`,
			"empty":       ``, "null": `null`, "a list": `[]`, "an empty object": `{}`,
		} {
			refused(t, name, v, json.RawMessage(text), bound, "reading "+v.TEE()+" evidence")
		}
	}
}

// TestNotTheEvidenceOfBareHardware: the report in the evidence is real, but it
// was not made for a handshake.
func TestNotTheEvidenceOfBareHardware(t *testing.T) {
	v := newVM(t, wire.SNP, options{})
	bareSNP, _ := v.bare()
	if _, err := bareSNP.Verify(t.Context(), v.model().json(t), bound); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("az-snp-vtpm at snp: %v", err)
	}
	v = newVM(t, wire.TDX, options{})
	_, bareTDX := v.bare()
	m := v.model()
	quote := fmt.Appendf(nil, `{"quote":%q,"cc_eventlog":null}`, base64.StdEncoding.EncodeToString(m.hardware))
	for _, raw := range []json.RawMessage{m.json(t), quote} {
		if _, err := bareTDX.Verify(t.Context(), raw, bound); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("az-tdx-vtpm at tdx: %v", err)
		}
	}
	if _, err := bareTDX.Verify(t.Context(), quote, verifier.Expected{ReportData: sum(m.claims)}); err != nil {
		t.Errorf("the quote as such: %v", err)
	}
}

func TestBadJSON(t *testing.T) {
	for _, kind := range kinds {
		v := newVM(t, kind, options{})
		good := v.model()
		text := string(good.json(t))
		replace := func(old, new string) json.RawMessage {
			if !strings.Contains(text, old) {
				t.Fatalf("no %s in the evidence", old)
			}
			return json.RawMessage(strings.Replace(text, old, new, 1))
		}
		for name, c := range map[string]struct {
			raw  json.RawMessage
			text string
		}{
			"version 3":          {replace(`"version":2`, `"version":3`), "version 3"},
			"version 0":          {replace(`"version":2`, `"version":0`), "version 0"},
			"version -1":         {replace(`"version":2`, `"version":-1`), "version -1"},
			"version 2.5":        {replace(`"version":2`, `"version":2.5`), "not the JSON"},
			"version in quotes":  {replace(`"version":2`, `"version":"2"`), "not the JSON"},
			"version 0 has text": {replace(`,"version":2`, ``), "reading "},
			"no hexadecimal":     {replace(`"message":"`, `"message":"xx`), "not the JSON"},
			"half a byte":        {replace(`"message":"`, `"message":"0`), "not the JSON"},
			"no base64":          {replace(`"hcl_report":"`, `"hcl_report":"+/`), "not the JSON"},
			"numbers for text":   {replace(`"message":"`, `"message":[1],"x":"`), "not the JSON"},
			"two values":         {json.RawMessage(text + text), "data after"},
			"cut":                {json.RawMessage(text[:len(text)/2]), "not the JSON"},
			"huge":               {json.RawMessage(text + strings.Repeat(" ", maxEvidence)), "at most"},
		} {
			refused(t, name, v.verifier(), c.raw, bound, c.text)
		}
	}
}
