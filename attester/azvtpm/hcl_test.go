package azvtpm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// hcl returns an HCL report of size bytes, or as long as it is when that is
// more.
func hcl(kind Kind, claims string, size int) []byte {
	le := binary.LittleEndian
	b := append([]byte("HCLA"), 2, 0, 0, 0)
	for _, n := range []uint32{uint32(1236 + len(claims)), 2, 0, 0, 0, 0} {
		b = le.AppendUint32(b, n)
	}
	for i := range 1184 { // the hardware's part
		b = append(b, byte(i%251))
	}
	for _, n := range []uint32{uint32(20 + len(claims)), 1, uint32(kind), 1, uint32(len(claims))} {
		b = le.AppendUint32(b, n)
	}
	b = append(b, claims...)
	return append(b, make([]byte, max(0, size-len(b)))...)
}

// claims as the paravisor writes them; user is the value of user-data.
func claims(user string) string {
	return `{"keys":[{"kid":"HCLAkPub","key_ops":["sign"],"kty":"RSA","e":"AQAB","n":"sgeo"}],` +
		`"vm-configuration":{"console-enabled":true,"secure-boot":true,"tpm-enabled":true},"user-data":"` + user + `"}`
}

func TestParseHCL(t *testing.T) {
	user := bytes.Repeat([]byte{0xab, 0x01}, 32)
	for name, tt := range map[string]struct {
		kind   Kind
		claims string
		size   int
		user   []byte
		length int // of the hardware report
	}{
		"TDX, capitals":  {TDX, claims(strings.Repeat("AB01", 32)), 2600, user, 1024},
		"SNP, lower":     {SNP, claims(strings.Repeat("ab01", 32)), 2600, user, 1184},
		"no padding":     {SNP, claims("ab01"), 0, user[:2], 1184},
		"no user-data":   {SNP, `{"keys":[]}`, 2048, nil, 1184},
		"empty":          {TDX, claims(""), 2600, []byte{}, 1024},
		"smallest there": {TDX, `{}`, 0, nil, 1024},
	} {
		t.Run(name, func(t *testing.T) {
			b := hcl(tt.kind, tt.claims, tt.size)
			got, err := ParseHCL(b)
			want := HCL{Kind: tt.kind, Report: b[32 : 32+tt.length], Claims: []byte(tt.claims), UserData: tt.user}
			if d := cmp.Diff(want, got); err != nil || d != "" {
				t.Errorf("%v\n%s", err, d)
			}
		})
	}
}

func TestParseHCLRefuses(t *testing.T) {
	good := func() []byte { return hcl(TDX, claims(strings.Repeat("00", 64)), 2600) }
	set := func(at int, v uint32) []byte {
		b := good()
		binary.LittleEndian.PutUint32(b[at:], v)
		return b
	}
	tests := map[string][]byte{
		"nothing":                           nil,
		"a part of the header":              good()[:1235],
		"claims that are cut":               good()[:1300],
		"another magic number":              append([]byte("XCLA"), good()[4:]...),
		"VBS":                               set(1224, 1),
		"trusted VM":                        set(1224, 3),
		"CCA":                               set(1224, 5),
		"version 2, which has an extension": set(1220, 2),
		"SHA-384":                           set(1228, 2),
		"claims longer than all":            set(1232, 1365),
		"claims as long as can be":          set(1232, 1<<32-1),
		"lengths that overflow 32 bits":     set(1216, 1<<32-1),
		"a total that disagrees":            set(8, 2600),
		"claims that are not JSON":          hcl(TDX, "{", 0),
		"claims that are an array":          hcl(TDX, "[]", 0),
		"no claims":                         hcl(TDX, "", 2600),
		"user-data of another type":         hcl(TDX, `{"user-data":7}`, 0),
		"user-data that is not hex":         hcl(TDX, claims("0g"), 0),
		"65 bytes of user-data":             hcl(TDX, claims(strings.Repeat("00", 65)), 0),
	}
	for name, b := range tests {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseHCL(b); !errors.Is(err, ErrHCL) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func FuzzParseHCL(f *testing.F) {
	f.Add([]byte{})
	f.Add(hcl(TDX, claims("AB"), 2600))
	f.Add(hcl(SNP, claims(strings.Repeat("00", 64)), 0))
	f.Add(hcl(SNP, "{}", 0)[:1236])
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseHCL(b)
		if err != nil {
			if !errors.Is(err, ErrHCL) {
				t.Errorf("%v is no ErrHCL", err)
			}
			return
		}
		if len(h.Report)+len(h.Claims) > len(b) || len(h.UserData) > ReportDataSize || h.Kind.TEE() == "" {
			t.Errorf("%d bytes give %+v", len(b), h)
		}
	})
}

// The wire form, field by field, as upstream's verifier reads it.
func TestEvidenceJSON(t *testing.T) {
	e := Evidence{
		Version:   EvidenceVersion,
		TPMQuote:  TPMQuote{Signature: Hex{0xde, 0xad}, Message: Hex{0xff, 0x54}, PCRs: []Hex{{0}, {0xAB, 1}}},
		HCLReport: URLBase64{0xfb, 0xff, 0xfe, 0xff},
		TDQuote:   URLBase64{4},
	}
	const want = `{"version":2,"tpm_quote":{"signature":"dead","message":"ff54","pcrs":["00","ab01"]},"hcl_report":"-__-_w==","td_quote":"BA=="}`
	out, err := json.Marshal(e)
	if err != nil || string(out) != want {
		t.Errorf("%s, %v", out, err)
	}
	var back Evidence
	if err := json.Unmarshal(out, &back); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(e, back); d != "" {
		t.Error(d)
	}
	e.TDQuote, e.VCEK = nil, URLBase64{0x30}
	if out, err := json.Marshal(e); err != nil || !bytes.Contains(out, []byte(`"vcek":"MA=="`)) || bytes.Contains(out, []byte("td_quote")) {
		t.Errorf("%s, %v", out, err)
	}
	for _, bad := range []string{`{"hcl_report":"+/8="}`, `{"hcl_report":"-_8"}`, `{"tpm_quote":{"message":"0"}}`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
}
