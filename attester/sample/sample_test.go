package sample

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The wire form, as trustee's sample verifier reads it: report data unpadded
// and unchanged, whatever its length.
func TestEvidence(t *testing.T) {
	digest := make([]byte, 48)
	digest[0], digest[47] = 0xff, 1
	for name, tt := range map[string]struct {
		a    Attester
		data []byte
		tee  string
		want string
	}{
		"sample":         {New(), []byte("nonce"), "sample", `{"svn":"1","report_data":"bm9uY2U="}`},
		"sampledevice":   {NewDevice(), []byte("nonce"), "sampledevice", `{"svn":"2","report_data":"bm9uY2U="}`},
		"no report data": {New(), nil, "sample", `{"svn":"1","report_data":""}`},
		"48 bytes":       {New(), digest, "sample", `{"svn":"1","report_data":"/wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAB"}`},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := tt.a.Evidence(t.Context(), tt.data)
			if err != nil {
				t.Fatal(err)
			}
			if string(out) != tt.want || tt.a.TEE() != tt.tee {
				t.Errorf("%s: %s", tt.a.TEE(), out)
			}
			var e Evidence
			if err := json.Unmarshal(out, &e); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(string(tt.data), string(e.ReportData)); d != "" {
				t.Error(d)
			}
		})
	}
}
