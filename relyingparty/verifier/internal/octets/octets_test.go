package octets_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/sealpod/sealpod/relyingparty/verifier/internal/octets"
)

func TestArray(t *testing.T) {
	for text, want := range map[string][]byte{
		`[]`: {}, `[0]`: {0}, `[1,2,255]`: {1, 2, 255}, " [ 7 ,\n\t8\r] ": {7, 8},
	} {
		var got octets.Array
		if err := json.Unmarshal([]byte(text), &got); err != nil || !bytes.Equal(got, want) || got == nil {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	got := octets.Array{1}
	if err := json.Unmarshal([]byte(`null`), &got); err != nil || got != nil {
		t.Errorf("null: %v, %v", got, err)
	}
	for _, text := range []string{`[256]`, `[-1]`, `[1.0]`, `[1e1]`, `["1"]`, `[null]`, `[[1]]`, `[true]`, `"AQ=="`, `{}`, `1`, `[1000]`} {
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}

// FuzzArray compares with encoding/json, which reads numbers one by one.
func FuzzArray(f *testing.F) {
	f.Add([]byte(`[1,2,3]`))
	f.Add([]byte(`[256]`))
	f.Add([]byte(`[[1]]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var got octets.Array
		if json.Unmarshal(text, &got) != nil || got == nil {
			return
		}
		var want []uint16
		if err := json.Unmarshal(text, &want); err != nil || len(want) != len(got) {
			t.Fatalf("%q: %v, encoding/json has %v, %v", text, got, want, err)
		}
		for i := range got {
			if uint16(got[i]) != want[i] {
				t.Errorf("%q: %v, encoding/json has %v", text, got, want)
			}
		}
	})
}
