package azure

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

func TestLayoutIsThatOfAzure(t *testing.T) {
	h := tdxHardware(t, tdx.Launch{})
	report, err := hclReport(h, rsaJWK("k", 65537, bytes.Repeat([]byte{0xff}, 256)), "id", []byte{0xab}, 2600)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	length := le.Uint32(report[1232:])
	for name, tt := range map[string]struct{ got, want uint32 }{
		"length of the index":  {uint32(len(report)), 2600},
		"signature":            {le.Uint32(report), 1095517000}, // as in az-cvm-vtpm's test/hcl-report-tdx.bin, like what follows
		"version":              {le.Uint32(report[4:]), 2},
		"size":                 {le.Uint32(report[8:]), length + 1236},
		"type of request":      {le.Uint32(report[12:]), 2},
		"status":               {le.Uint32(report[16:]), 0},
		"size of data":         {le.Uint32(report[1216:]), length + 20},
		"version of data":      {le.Uint32(report[1220:]), 1},
		"type of report":       {le.Uint32(report[1224:]), 4},
		"type of hash":         {le.Uint32(report[1228:]), 1},
		"behind the TD report": {uint32(bytes.Count(report[32+1024:1216], []byte{0})), 160},
	} {
		if tt.got != tt.want {
			t.Errorf("%s is %d, want %d", name, tt.got, tt.want)
		}
	}
	var data struct {
		Keys     []map[string]any
		Config   map[string]any `json:"vm-configuration"`
		UserData string         `json:"user-data"`
	}
	if err := json.Unmarshal(report[1236:1236+length], &data); err != nil {
		t.Fatal(err)
	}
	if data.UserData != "AB"+strings.Repeat("0", 126) || data.Config["vmUniqueId"] != "id" {
		t.Errorf("%+v", data)
	}
	want := map[string]any{"kid": "k", "kty": "RSA", "e": "AQAB", "key_ops": []any{"sign"}, "n": strings.Repeat("_", 340) + "_w"}
	if len(data.Keys) != 1 || fmt.Sprint(data.Keys[0]) != fmt.Sprint(want) {
		t.Errorf("keys %v", data.Keys)
	}
	if _, err := hclReport(h, rsaJWK("k", 65537, make([]byte, 512)), "id", nil, hclSize); err == nil {
		t.Error("a report longer than the index is cut")
	}
	h.Report = func([64]byte) ([]byte, error) { return make([]byte, 1185), nil }
	if _, err := hclReport(h, jwk{}, "id", nil, hclSize); err == nil {
		t.Error("a hardware report that is too long is taken")
	}
}

func TestTheReportFollowsTheReportData(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	long := bytes.Repeat([]byte{7}, 100)
	for i, data := range [][]byte{nil, {1}, long[:32], long[:48], long[:64], long} {
		if data != nil {
			if err := writeReportData(g, data); err != nil {
				t.Fatal(err)
			}
		}
		h, err := azvtpm.ParseHCL(readReport(t, g))
		if err != nil {
			t.Fatal(err)
		}
		want := make([]byte, 64)
		copy(want, data)
		if !bytes.Equal(h.UserData, want) {
			t.Errorf("%d: user data %x after writing %x", i, h.UserData, data)
		}
	}
	// One that was defined and never written.
	if name, err := nvName(g, reportDataIndex); err != nil {
		t.Fatal(err)
	} else if _, err := (tpm2.NVUndefineSpace{AuthHandle: empty(tpm2.TPMRHOwner),
		NVIndex: tpm2.NamedHandle{Handle: reportDataIndex, Name: name}}).Execute(g); err != nil {
		t.Fatal(err)
	}
	if err := defineNV(g, reportDataIndex, 8, tpm2.TPMANV{OwnerRead: true, OwnerWrite: true}); err != nil {
		t.Fatal(err)
	}
	if h, err := azvtpm.ParseHCL(readReport(t, g)); err != nil || !bytes.Equal(h.UserData, make([]byte, 64)) {
		t.Errorf("%x, %v", h.UserData, err)
	}
}

func TestTheParavisorRests(t *testing.T) {
	m := boot(t, Options{Refresh: time.Hour})
	g := dial(t, m)
	before := readReport(t, g)
	if err := writeReportData(g, []byte{1}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readReport(t, g), before) {
		t.Error("the report is new already")
	}
	// A guest that asks for it at once is told so in the end.
	a := azvtpm.New(host(m), azvtpm.TDX)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := a.Evidence(ctx, []byte{2}); !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, azvtpm.ErrStale) {
		t.Errorf("got %v", err)
	}
}

// Parts of a report fit together, whatever is written between the readings.
func TestReadingOnDoesNotRenewTheReport(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	report := readReport(t, g, func() error { return writeReportData(g, []byte{1}) })
	h, err := azvtpm.ParseHCL(report)
	if err != nil {
		t.Fatal(err)
	}
	if digest := sha256.Sum256(h.Claims); !bytes.Equal(h.Report[128:160], digest[:]) || h.UserData[0] != 0 {
		t.Error("the parts are of two reports")
	}
}

// A guest that hides its report data has the old report, and a working TPM.
func TestUnreadableReportData(t *testing.T) {
	m := boot(t, Options{})
	g := dial(t, m)
	before := readReport(t, g)
	if err := defineNV(g, reportDataIndex, 8, tpm2.TPMANV{AuthRead: true, OwnerWrite: true}); err != nil {
		t.Fatal(err)
	}
	if err := writeNV(g, empty(tpm2.TPMRHOwner), reportDataIndex, []byte("12345678")); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(readReport(t, g), before) {
		t.Error("the report is another")
	}
}

func host(m machine) podvm.Host {
	return podvm.Host{Root: m.root, IMDS: m.IMDS(), LookupEnv: func(string) (string, bool) { return "", false }}
}

// Evidence that the attester makes on such a VM, held against plain
// cryptography link by link.
func TestEvidence(t *testing.T) {
	chip, err := snp.Open("", snp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for kind, hardware := range map[azvtpm.Kind]Hardware{
		azvtpm.TDX: tdxHardware(t, tdx.Launch{}),
		azvtpm.SNP: SNP(chip, snp.NewGuest(snp.Launch{})),
	} {
		t.Run(kind.TEE(), func(t *testing.T) {
			m := boot(t, Options{Hardware: hardware, Refresh: 20 * time.Millisecond})
			found, err := azvtpm.Detect(t.Context(), host(m))
			if err != nil || found != kind {
				t.Fatalf("detected %v, %v", found, err)
			}
			a := azvtpm.New(host(m), kind)
			var wg sync.WaitGroup
			for i := range 3 { // together, and with the same vTPM
				wg.Go(func() {
					data := bytes.Repeat([]byte{byte(i)}, 48)
					raw, err := a.Evidence(t.Context(), data)
					if err != nil {
						t.Error(err)
						return
					}
					var e azvtpm.Evidence
					if err := json.Unmarshal(raw, &e); err != nil {
						t.Error(err)
						return
					}
					if err := verify(e, data, kind, chip); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if err := a.BindInitData(t.Context(), make([]byte, 32)); err != nil {
				t.Fatal(err)
			}
			want := sha256.Sum256(make([]byte, 64))
			if got, err := m.PCR(8); err != nil || !bytes.Equal(got, want[:]) {
				t.Errorf("PCR 8 is %x, %v", got, err)
			}
		})
	}
}

func verify(e azvtpm.Evidence, data []byte, kind azvtpm.Kind, chip *snp.Chip) error {
	h, err := azvtpm.ParseHCL(e.HCLReport)
	if err != nil {
		return err
	}
	claims := sha256.Sum256(h.Claims)
	reportData := append(claims[:], make([]byte, 32)...)
	switch kind {
	case azvtpm.TDX:
		// REPORTDATA is at 128 of a TDREPORT, and at 48+520 of a quote.
		if !bytes.Equal(h.Report[128:192], reportData) || !bytes.Equal(e.TDQuote[568:632], reportData) {
			return errors.New("TD report and quote are not about the claims")
		}
		// MRTD likewise: 528 and 48+136.
		if !bytes.Equal(h.Report[528:576], e.TDQuote[184:232]) {
			return errors.New("the quote is of another TD")
		}
	case azvtpm.SNP:
		if !bytes.Equal(h.Report[0x50:0x90], reportData) {
			return errors.New("the report is not about the claims")
		}
		vcek, err := x509.ParseCertificate(e.VCEK)
		if err != nil {
			return err
		}
		_, ask, _ := chip.Roots()
		if err := vcek.CheckSignatureFrom(ask); err != nil {
			return err
		}
		integer := func(at int) *big.Int {
			b := slices.Clone(h.Report[at : at+72])
			slices.Reverse(b)
			return new(big.Int).SetBytes(b)
		}
		digest := sha512.Sum384(h.Report[:0x2A0])
		if !ecdsa.Verify(vcek.PublicKey.(*ecdsa.PublicKey), digest[:], integer(0x2A0), integer(0x2E8)) {
			return errors.New("the VCEK did not sign the report")
		}
	}
	var named varData
	if err := json.Unmarshal(h.Claims, &named); err != nil {
		return err
	}
	modulus, err := base64.RawURLEncoding.DecodeString(named.Keys[0].Modulus)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(e.TPMQuote.Message)
	key := &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: 65537}
	if err := rsa.VerifyPKCS1v15(key, crypto.SHA256, digest[:], e.TPMQuote.Signature); err != nil {
		return err
	}
	attest, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.TPMQuote.Message)
	if err != nil {
		return err
	}
	if !bytes.Equal(attest.ExtraData.Buffer, data) || !strings.HasPrefix(hex.EncodeToString(h.UserData), hex.EncodeToString(data)) {
		return fmt.Errorf("quote of %x, report of %x, want %x", attest.ExtraData.Buffer, h.UserData, data)
	}
	quote, err := attest.Attested.Quote()
	if err != nil {
		return err
	}
	all := sha256.New()
	for _, pcr := range e.TPMQuote.PCRs {
		all.Write(pcr)
	}
	if len(e.TPMQuote.PCRs) != 24 || !bytes.Equal(quote.PCRDigest.Buffer, all.Sum(nil)) {
		return errors.New("the quote is over other PCRs")
	}
	return nil
}
