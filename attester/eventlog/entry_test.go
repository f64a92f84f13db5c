package eventlog

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sealpod/sealpod/podvm"
)

// Digests of one event as guest-components computes them.
func TestDigest(t *testing.T) {
	for name, tt := range map[string]struct {
		alg  Algorithm
		want string // start
	}{"SHA-256": {sha256, "46df8dac"}, "SHA-384": {sha384, "dad5f0e2"}} {
		t.Run(name, func(t *testing.T) {
			e := newEntry(tt.alg, 4, "domain operation content")
			if got := hex.EncodeToString(e.digest); !strings.HasPrefix(got, tt.want) || len(e.digest) != tt.alg.Size {
				t.Errorf("got %s", got)
			}
		})
	}
}

func TestEntryBytes(t *testing.T) {
	e := newEntry(sha256, 4, "a b c")
	want := "04000000" + "06000000" + "01000000" + "0b00" + hex.EncodeToString(e.digest) +
		"0d000000" + "4c454141" + "05000000" + hex.EncodeToString([]byte("a b c"))
	if d := cmp.Diff(want, hex.EncodeToString(e.marshal())); d != "" {
		t.Error(d)
	}
}

func TestEventText(t *testing.T) {
	long := strings.Repeat("x", maxText)
	tests := map[string]struct {
		domain, operation, content string
		want                       string // "" means refused
	}{
		"plain":                    {"d", "o", "c", "d o c"},
		"what the data hub writes": {"github.com/confidential-containers", "PullImage", `{"image": "i","digest": "d"}`, `github.com/confidential-containers PullImage {"image": "i","digest": "d"}`},
		"empty content":            {"d", "o", "", "d o "},
		"spaces in content":        {"d", "o", " a\tb ", "d o  a\tb "},
		"other scripts":            {"dé", "ö", "日本", "dé ö 日本"},
		"as long as may be":        {"d", "o", long[4:], "d o " + long[4:]},
		"too long":                 {"d", "o", long[3:], ""},
		"empty domain":             {"", "o", "c", ""},
		"empty operation":          {"d", "", "c", ""},
		"space in domain":          {"d x", "o", "c", ""},
		"space in operation":       {"d", "o x", "c", ""},
		"no-break space":           {"d\u00a0x", "o", "c", ""},
		"tab in domain":            {"d\tx", "o", "c", ""},
		"NUL in operation":         {"d", "o\x00", "c", ""},
		"escape in domain":         {"\x1b[2J", "o", "c", ""},
		"line feed in domain":      {"d\n", "o", "c", ""},
		"line feed in content":     {"d", "o", "c\nd o forged", ""},
		"return in content":        {"d", "o", "c\rd", ""},
		"not UTF-8":                {"d", "o", "\xff", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := eventText(tt.domain, tt.operation, tt.content)
			if tt.want == "" {
				if !errors.Is(err, ErrEvent) || podvm.Cause(err) == "" {
					t.Errorf("%q, %v", got, err)
				}
			} else if err != nil || got != tt.want {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

func TestRegisterMapping(t *testing.T) {
	tdx := []uint32{4, 1, 2, 2, 2, 2, 2, 1, 3, 3, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4}
	for _, tee := range []string{"tdx", "az-tdx-vtpm", "az-snp-vtpm", "tpm"} {
		p, ok := PlatformOf(tee)
		if !ok {
			t.Fatal(tee)
		}
		for pcr := range uint64(24) {
			want := uint32(pcr)
			if tee == "tdx" {
				want = tdx[pcr]
			}
			got, err := p.Register(pcr)
			if tee != "tdx" && 17 <= pcr && pcr <= 22 {
				if !errors.Is(err, ErrLocality) || !strings.Contains(podvm.Cause(err), "init_pcr = 23") {
					t.Errorf("%s: PCR %d is in register %d, %v", tee, pcr, got, err)
				}
			} else if err != nil || got != want {
				t.Errorf("%s: PCR %d is in register %d, %v, want %d", tee, pcr, got, err, want)
			}
		}
		for _, pcr := range []uint64{24, 256 + 8, 1 << 32, math.MaxUint64} { // none wraps around
			got, err := p.Register(pcr)
			if tee == "tdx" && (err != nil || got != 4) || tee != "tdx" && !errors.Is(err, ErrRegister) {
				t.Errorf("%s: PCR %d is in register %d, %v", tee, pcr, got, err)
			}
		}
	}
	for _, tee := range []string{"sample", "snp", "csv", "cca", "se", "sgx", ""} {
		if _, ok := PlatformOf(tee); ok {
			t.Errorf("%q has registers", tee)
		}
	}
}

func FuzzParsePending(f *testing.F) {
	f.Add(pending{offset: 7, expected: make([]byte, 48), entry: newEntry(sha384, 3, "a b c")}.marshal())
	f.Add(make([]byte, 60))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parsePending(sha384, in)
		if err != nil {
			return
		}
		if got := p.marshal(); string(got) != string(in) {
			t.Fatalf("%x came back as %x", in, got)
		}
		if n := binary.LittleEndian.Uint32(p.entry.marshal()); n != p.entry.register {
			t.Fatalf("register %d became %d", p.entry.register, n)
		}
	})
}
