package snp

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// mutate returns good evidence with one member of the report replaced.
func mutate(t *testing.T, name string, value any) json.RawMessage {
	t.Helper()
	var e map[string]map[string]any
	d := json.NewDecoder(bytes.NewReader(toJSON(t, realReport())))
	d.UseNumber()
	if err := d.Decode(&e); err != nil {
		t.Fatal(err)
	}
	if e["attestation_report"][name] = value; value == absent {
		delete(e["attestation_report"], name)
	}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

var absent = new(int)

func TestReportIsRebuiltByteForByte(t *testing.T) {
	s := newSimulator(t, Turin)
	m := s.model()
	turin := s.report(m, s.endorse(m.ChipID, m.TCB))
	for name, report := range map[string][]byte{"Milan, version 2": realReport(), "Turin, version 5": turin} {
		got, chain, err := parseEvidence(toJSON(t, report, Certificate{"VCEK", []byte{1, 0, 255}}))
		if err != nil || !bytes.Equal(got, report) {
			t.Errorf("%s: %v", name, err)
		}
		if len(chain) != 1 || chain[0].Type != "VCEK" || !bytes.Equal(chain[0].DER, []byte{1, 0, 255}) {
			t.Errorf("%s: chain %v", name, chain)
		}
	}
}

func TestLargePolicyKeepsAllItsBits(t *testing.T) {
	got, _, err := parseEvidence(mutate(t, "policy", json.Number("18446744073709551615")))
	if err != nil || !bytes.Equal(got[8:16], bytes.Repeat([]byte{255}, 8)) {
		t.Errorf("%x, %v", got, err)
	}
}

func TestCertificateOfOtherTypeIsIgnored(t *testing.T) {
	text := strings.Replace(string(toJSON(t, realReport(), Certificate{"VCEK", nil})), `"cert_type":"VCEK"`, `"cert_type":{"OTHER":"c0b406a4"}`, 1)
	_, chain, err := parseEvidence(json.RawMessage(text))
	if err != nil || len(chain) != 1 || chain[0].Type != "" {
		t.Errorf("%v, %v", chain, err)
	}
}

func TestMalformedEvidence(t *testing.T) {
	many := make([]Certificate, maxCertificates+1)
	cases := map[string]json.RawMessage{
		"empty": nil, "null": json.RawMessage("null"), "array": json.RawMessage("[]"), "text": json.RawMessage(`"x"`),
		"two documents":         append(toJSON(t, realReport()), "{}"...),
		"too large":             bytes.Repeat([]byte(" "), maxEvidence+1),
		"too many certificates": toJSON(t, realReport(), many...),
		"too large certificate": toJSON(t, realReport(), Certificate{"VCEK", make([]byte, maxCertificate+1)}),
		"truncated":             toJSON(t, realReport())[:1000],
		"measurement as text":   mutate(t, "measurement", "AAAA"),
		"measurement too short": mutate(t, "measurement", make([]int, 47)),
		"measurement too long":  mutate(t, "measurement", make([]int, 49)),
		"byte above 255":        mutate(t, "host_data", append(make([]int, 31), 256)),
		"byte below 0":          mutate(t, "host_data", append(make([]int, 31), -1)),
		"fraction":              mutate(t, "host_data", append(make([]any, 31), json.Number("1.5"))),
		"nested array":          mutate(t, "host_data", [][]int{make([]int, 32)}),
		"policy too large":      mutate(t, "policy", json.Number("18446744073709551616")),
		"policy as a float":     mutate(t, "policy", json.Number("1e3")),
		"policy below 0":        mutate(t, "policy", -1),
		"fmc on Milan":          mutate(t, "reported_tcb", map[string]int{"fmc": 1, "bootloader": 1, "tee": 1, "snp": 1, "microcode": 1}),
		"TCB incomplete":        mutate(t, "reported_tcb", map[string]int{"bootloader": 1}),
		"no family":             mutate(t, "version", 3),
	}
	for _, name := range []string{
		"version", "guest_svn", "policy", "family_id", "image_id", "vmpl", "sig_algo", "current_tcb", "plat_info", "key_info",
		"report_data", "measurement", "host_data", "id_key_digest", "author_key_digest", "report_id", "report_id_ma",
		"reported_tcb", "chip_id", "committed_tcb", "current", "committed", "launch_tcb", "signature",
	} {
		cases["no "+name] = mutate(t, name, absent)
		cases["null "+name] = mutate(t, name, nil)
	}
	for name, raw := range cases {
		if _, err := amd(t).Verify(t.Context(), raw, verifier.Expected{ReportData: realData}); !errors.Is(err, verifier.ErrEvidence) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	good := toJSON(f, realReport(), realVCEK())
	f.Add([]byte(good))
	f.Add([]byte(good[:500]))
	f.Add([]byte(toJSON(f, realReport(), realVCEK(), Certificate{"CRL", []byte{0x30, 0}})))
	f.Add([]byte(`{"attestation_report":{"version":3,"measurement":[1,2,3]},"cert_chain":[{"cert_type":"VCEK","data":[48]}]}`))
	v := amd(f)
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, err := v.Verify(t.Context(), raw, verifier.Expected{ReportData: realData})
		if err != nil && !errors.Is(err, verifier.ErrEvidence) && !errors.Is(err, ErrNoKey) {
			t.Error(err)
		}
	})
}

func FuzzVerifyReport(f *testing.F) {
	f.Add(realReport(), realVCEK().DER)
	f.Add(make([]byte, ReportSize), []byte{0x30})
	v := amd(f)
	f.Fuzz(func(t *testing.T, report, der []byte) {
		r, err := v.VerifyReport(t.Context(), report, []Certificate{{"VCEK", der}})
		if err == nil && !bytes.Equal(r.Measurement, realReport()[0x90:0xC0]) {
			t.Error("a forged report")
		}
	})
}
