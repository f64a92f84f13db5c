package image

import (
	"bytes"
	"debug/pe"
	"encoding/binary"
	"errors"
	"testing"
)

// stub is an EFI program with one section, .text, and room for more.
func stub() []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	copy(b, "MZ")
	le.PutUint32(b[peOffsetAt:], 0x80)
	copy(b[0x80:], "PE\x00\x00")
	le.PutUint16(b[0x84:], 0x8664)
	le.PutUint16(b[0x80+coffSections:], 1)
	le.PutUint16(b[0x80+coffOptional:], 240)
	opt := b[0x98:]
	le.PutUint16(opt, 0x20b)
	le.PutUint32(opt[optAlignment:], 0x1000)
	le.PutUint32(opt[optFileAlign:], 0x200)
	le.PutUint32(opt[optImageSize:], 0x2000)
	le.PutUint32(opt[optHeaderSize:], 0x400)
	le.PutUint32(opt[optCheckSum:], 0x12345678)
	le.PutUint32(opt[108:], 16)
	h := b[0x98+240:]
	copy(h, ".text")
	le.PutUint32(h[8:], 5)
	le.PutUint32(h[12:], 0x1000)
	le.PutUint32(h[16:], 0x200)
	le.PutUint32(h[20:], 0x400)
	return append(b, append([]byte("code!"), make([]byte, 0x200-5)...)...)
}

// signed is a program with a signature.
func signed(raw []byte, signature string) []byte {
	out := append(bytes.Clone(raw), signature...)
	binary.LittleEndian.PutUint32(out[0x98+optDirectories:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(out[0x98+optDirectories+4:], uint32(len(signature)))
	return out
}

func TestUnifiedKernelImageHasItsSections(t *testing.T) {
	parts := []section{{".osrel", []byte("ID=x\n")}, {".linux", bytes.Repeat([]byte("kernel"), 1000)}}
	uki, err := unify(stub(), parts)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.NewFile(bytes.NewReader(uki))
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Sections) != 3 || len(uki)%0x200 != 0 {
		t.Fatalf("%d sections, %d bytes", len(f.Sections), len(uki))
	}
	end := uint32(0)
	for i, s := range f.Sections {
		if s.VirtualAddress < end || s.VirtualAddress%0x1000 != 0 || s.Offset%0x200 != 0 {
			t.Errorf("%s at %x, %x in the file", s.Name, s.VirtualAddress, s.Offset)
		}
		end = s.VirtualAddress + s.VirtualSize
		if i == 0 {
			continue
		}
		data, err := s.Data()
		if err != nil || s.Name != parts[i-1].name || !bytes.Equal(data[:s.VirtualSize], parts[i-1].data) {
			t.Errorf("%s: %v", s.Name, err)
		}
		if got, err := sectionData(uki, s.Name); err != nil || !bytes.Equal(got, parts[i-1].data) {
			t.Errorf("%s: %d bytes, %v", s.Name, len(got), err)
		}
	}
	if header := f.OptionalHeader.(*pe.OptionalHeader64); header.SizeOfImage < end || header.CheckSum != 0 {
		t.Errorf("an image of %x for %x, checksum %x", header.SizeOfImage, end, header.CheckSum)
	}
	if _, err := sectionData(uki, ".none"); !errors.Is(err, errSection) {
		t.Errorf("a section that is not there: %v", err)
	}
}

func TestUnifyRefuses(t *testing.T) {
	many := make([]section, 40)
	for i := range many {
		many[i] = section{".x", []byte("x")}
	}
	for name, c := range map[string]struct {
		stub     []byte
		sections []section
	}{
		"nothing": {nil, nil}, "text": {bytes.Repeat([]byte("x"), 0x400), nil}, "half a program": {stub()[:0x99], nil},
		"a signed program": {signed(stub(), "sigsigsi"), nil}, "too many sections": {stub(), many},
		"an empty section": {stub(), []section{{".x", nil}}}, "a long name": {stub(), []section{{".too-long", []byte("x")}}},
	} {
		if _, err := unify(c.stub, c.sections); !errors.Is(err, ErrPE) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAuthenticodeIsOfAllButChecksumAndSignature(t *testing.T) {
	sum := func(raw []byte) string {
		t.Helper()
		d, err := authenticode(raw)
		if err != nil {
			t.Fatal(err)
		}
		return string(d)
	}
	base := stub()
	want := sum(base)
	if sum(signed(base, "signature")) != want {
		t.Error("the signature changes the digest")
	}
	for i := range base {
		changed := bytes.Clone(base)
		changed[i] ^= 1
		got, err := authenticode(changed)
		if err != nil {
			continue
		}
		free := i >= 0x98+optCheckSum && i < 0x98+optCheckSum+4 || i >= 0x98+optDirectories && i < 0x98+optDirectories+8
		if same := string(got) == want; same != free {
			t.Errorf("byte %#x: same digest %v", i, same)
		}
	}
	if _, err := authenticode(append(signed(base, "signature"), 'x')); !errors.Is(err, ErrPE) {
		t.Errorf("something behind the signature: %v", err)
	}
}

func FuzzPE(f *testing.F) {
	f.Add(stub())
	f.Add(signed(stub(), "signature"))
	f.Add(stub()[:0x1b0])
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := authenticode(raw); err != nil && !errors.Is(err, ErrPE) {
			t.Error(err)
		}
		if _, err := sectionData(raw, ".text"); err != nil && !errors.Is(err, ErrPE) && !errors.Is(err, errSection) {
			t.Error(err)
		}
		out, err := unify(raw, []section{{".linux", []byte("x")}})
		if err != nil {
			return
		}
		if got, err := sectionData(out, ".linux"); err == nil && len(got) > 1 {
			t.Errorf("%q", got) // another section of that name may come first
		}
	})
}
