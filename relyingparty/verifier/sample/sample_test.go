package sample

import (
	"encoding/base64"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier"
)

var digest = []byte("0123456789abcdef0123456789abcdef0123456789abcdef")

func text(reportData []byte) []byte {
	return fmt.Appendf(nil, `{"svn":"1","report_data":%q}`, base64.StdEncoding.EncodeToString(reportData))
}

func TestClaims(t *testing.T) {
	b64 := base64.StdEncoding.EncodeToString(digest)
	cpu := map[string]any{
		"svn": "1", "report_data": b64, "launch_digest": "abcde", "debug": false,
		"platform_version": map[string]any{"major": 1, "minor": 4},
	}
	got, err := CPU{}.Verify(t.Context(), text(digest), verifier.Expected{ReportData: digest})
	if err != nil || !reflect.DeepEqual(got, []verifier.Claims{{Class: "cpu", Values: cpu}}) {
		t.Errorf("sample: %v, %v", got, err)
	}
	cpu["init_data"] = "AQI="
	got, err = CPU{}.Verify(t.Context(), text(digest), verifier.Expected{ReportData: digest, InitData: []byte{1, 2}})
	if err != nil || !reflect.DeepEqual(got, []verifier.Claims{{Class: "cpu", Values: cpu}}) {
		t.Errorf("sample with init data: %v, %v", got, err)
	}
	got, err = Device{}.Verify(t.Context(), text(digest), verifier.Expected{ReportData: digest})
	want := []verifier.Claims{{Class: "gpu", Values: map[string]any{"svn": "1", "report_data": b64}}}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("sampledevice: %v, %v", got, err)
	}
	if (CPU{}).TEE() != "sample" || (Device{}).TEE() != "sampledevice" {
		t.Error("wire names")
	}
}

func TestEvidenceThatIsRefused(t *testing.T) {
	for name, raw := range map[string][]byte{
		"empty": nil, "null": []byte("null"), "text": []byte(`"x"`), "array": []byte("[]"), "no members": []byte("{}"),
		"no svn":         []byte(`{"report_data":""}`),
		"svn a number":   []byte(`{"svn":1,"report_data":""}`),
		"no report data": []byte(`{"svn":"1"}`), "trailing data": append(text(digest), '1'),
		"bad base64": []byte(`{"svn":"1","report_data":"%"}`), "other digest": text(digest[:47]),
		"padded digest": text(append(append([]byte{}, digest...), make([]byte, 16)...)), "empty digest": text(nil),
	} {
		for _, v := range []verifier.Verifier{CPU{}, Device{}} {
			if c, err := v.Verify(t.Context(), raw, verifier.Expected{ReportData: digest}); !errors.Is(err, verifier.ErrEvidence) {
				t.Errorf("%s, %s: %v, %v", v.TEE(), name, c, err)
			}
		}
	}
	if _, err := (CPU{}).Verify(t.Context(), text(nil), verifier.Expected{}); !errors.Is(err, verifier.ErrEvidence) {
		t.Errorf("nothing expected: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add(text(digest))
	f.Add([]byte(`{"svn":"1"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := (CPU{}).Verify(t.Context(), raw, verifier.Expected{ReportData: digest}); err != nil && !errors.Is(err, verifier.ErrEvidence) {
			t.Error(err)
		}
	})
}
