package snp

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-sev-guest/abi"
	"github.com/google/uuid"
)

const (
	vcek = "63da758d-e664-4564-adc5-f4b93be8accd"
	vlek = "a8074bc2-a25a-483e-aae6-39c045a0b8a1"
	ask  = "4ab7b379-bbac-4fe4-a02f-05aef327c782"
	ark  = "c0b406a4-a803-4952-9743-3fb6014cd0ae"
	crl  = "92f81bc3-5811-4d3d-97ff-d19f88dc67ea"
	odd  = "ecae0c0f-9502-43b1-afa2-0ae2e0d565b6"
)

// table is made by go-sev-guest from GUID, data, GUID, data and so on.
func table(parts ...string) []byte {
	var c abi.CertTable
	for i := 0; i < len(parts); i += 2 {
		c.Entries = append(c.Entries, abi.CertTableEntry{GUID: uuid.MustParse(parts[i]), RawCert: []byte(parts[i+1])})
	}
	return c.Marshal()
}

// entry is a table entry that says what it likes.
func entry(guid string, offset, length uint32) []byte {
	id := uuid.MustParse(guid)
	out := binary.LittleEndian.AppendUint32(id[:], offset)
	return binary.LittleEndian.AppendUint32(out, length)
}

func TestCertTable(t *testing.T) {
	end := make([]byte, 24)
	pages := make([]byte, 16<<10)
	tests := map[string]struct {
		in   []byte
		want string // JSON; "" means refused
	}{
		"empty":             {nil, "null"},
		"a buffer of zeros": {pages, "null"},
		"VCEK":              {table(vcek, "\x01\xff"), `[{"cert_type":"VCEK","data":[1,255]}]`},
		"VLEK":              {table(vlek, "\x02"), `[{"cert_type":"VLEK","data":[2]}]`},
		"all kinds": {table(ark, "a", ask, "b", vcek, "c", vlek, "d", crl, "e", odd, "f"), `[{"cert_type":"ARK","data":[97]},{"cert_type":"ASK","data":[98]},` +
			`{"cert_type":"VCEK","data":[99]},{"cert_type":"VLEK","data":[100]},{"cert_type":"CRL","data":[101]},{"cert_type":{"OTHER":"` + odd + `"},"data":[102]}]`},
		"padded to pages":             {append(table(vcek, "x"), pages...), `[{"cert_type":"VCEK","data":[120]}]`},
		"only the chain above":        {table(ark, "a", ask, "b"), "null"},
		"a VCEK of no bytes":          {table(vcek, ""), "null"},
		"no end":                      {entry(vcek, 0, 1), ""},
		"half an entry":               {entry(vcek, 0, 1)[:23], ""},
		"past the end":                {append(entry(vcek, 48, 1), end...), ""},
		"length wraps around":         {append(entry(vcek, 0xfffffff0, 0x20), end...), ""},
		"4 GiB":                       {append(entry(vcek, 0, 0xffffffff), end...), ""},
		"the same bytes over again":   {append(append(entry(vcek, 0, 60), entry(vcek, 0, 60)...), end...), ""},
		"17 certificates":             {append(bytes.Repeat(entry(vcek, 0, 1), 17), end...), ""},
		"16 certificates":             {append(bytes.Repeat(entry(ark, 0, 0), 16), end...), "null"},
		"larger than any":             {append(table(vcek, "x"), make([]byte, maxCertTable)...), ""},
		"junk":                        {bytes.Repeat([]byte("junk"), 50), ""},
		"UUID of zeros but not ended": {append(entry(uuid.Nil.String(), 0, 1), end...), "null"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			chain, err := parseCertTable(tt.in)
			if tt.want == "" {
				if !errors.Is(err, ErrCertTable) || chain != nil {
					t.Errorf("got %v, %v", chain, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := json.Marshal(chain); err != nil || string(got) != tt.want {
				t.Errorf("got %s, %v", got, err)
			}
		})
	}
}

func FuzzCertTable(f *testing.F) {
	f.Add(table(vcek, "x", odd, "y"))
	f.Add(append(entry(vcek, 0xfffffff0, 0x20), make([]byte, 24)...))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		chain, err := parseCertTable(in)
		if err != nil {
			return
		}
		text, err := json.Marshal(chain)
		if err != nil || len(text) > 4*len(in)+100*maxCerts+4 {
			t.Fatalf("%d bytes became %d, %v", len(in), len(text), err)
		}
		if chain != nil && !strings.Contains(string(text), `"VCEK"`) && !strings.Contains(string(text), `"VLEK"`) {
			t.Fatalf("a chain without a leaf: %s", text)
		}
	})
}
