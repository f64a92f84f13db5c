package image

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// errSection says that an EFI program has no section of a name.
var errSection = errors.New("no such section")

// ErrPE says that a file is not an EFI program of the kind that can be worked on.
var ErrPE = errors.New("not a PE32+ file as expected")

// section is one of a unified kernel image.
type section struct {
	name string
	data []byte
}

// Offsets in the headers of a PE32+ file.
// Source: Microsoft PE Format, "COFF File Header", "Optional Header (Image Only)",
// "Section Table".
const (
	peOffsetAt     = 0x3c
	coffSections   = 4 + 2  // NumberOfSections, after the signature and Machine
	coffOptional   = 4 + 16 // SizeOfOptionalHeader
	coffSize       = 4 + 20
	optAlignment   = 32 // SectionAlignment
	optFileAlign   = 36
	optImageSize   = 56
	optHeaderSize  = 60
	optCheckSum    = 64
	optDirectories = 112 + 4*8 // entry of the certificate table
	optMin         = optDirectories + 8
	sectionSize    = 40
	dataReadable   = 0x40000040 // IMAGE_SCN_CNT_INITIALIZED_DATA, IMAGE_SCN_MEM_READ
)

// peFile is where things are in a PE32+ file.
type peFile struct {
	raw                    []byte
	optional, table, count int
	certificates, certSize int
}

func parsePE(raw []byte) (*peFile, error) {
	if len(raw) < 0x40 || raw[0] != 'M' || raw[1] != 'Z' {
		return nil, ErrPE
	}
	le := binary.LittleEndian
	head := int(le.Uint32(raw[peOffsetAt:]))
	if head < 0 || head > len(raw)-coffSize-optMin || string(raw[head:head+4]) != "PE\x00\x00" {
		return nil, ErrPE
	}
	p := &peFile{
		raw: raw, optional: head + coffSize, count: int(le.Uint16(raw[head+coffSections:])),
		table: head + coffSize + int(le.Uint16(raw[head+coffOptional:])),
	}
	if le.Uint16(raw[p.optional:]) != 0x20b || p.table < p.optional+optMin || p.count == 0 || p.table+p.count*sectionSize > len(raw) {
		return nil, ErrPE
	}
	p.certificates, p.certSize = int(le.Uint32(raw[p.optional+optDirectories:])), int(le.Uint32(raw[p.optional+optDirectories+4:]))
	if p.certSize > 0 && (p.certificates < p.table+p.count*sectionSize || p.certificates+p.certSize != len(raw)) {
		return nil, fmt.Errorf("%w: its signature is not its end", ErrPE)
	}
	return p, nil
}

// unify appends sections to the EFI program stub, as systemd's ukify does.
// Source: uapi-group specifications, unified_kernel_image.
func unify(stub []byte, sections []section) ([]byte, error) {
	p, err := parsePE(stub)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	align, fileAlign := le.Uint32(stub[p.optional+optAlignment:]), le.Uint32(stub[p.optional+optFileAlign:])
	room := min(int(le.Uint32(stub[p.optional+optHeaderSize:])), len(stub)) - p.table
	if p.certSize != 0 || align == 0 || align > 1<<20 || fileAlign == 0 || fileAlign > 1<<20 || room < (p.count+len(sections))*sectionSize {
		return nil, fmt.Errorf("%w: it is signed, or has no room for sections", ErrPE)
	}
	next := uint32(0) // address
	for i := range p.count {
		s := stub[p.table+i*sectionSize:]
		next = max(next, le.Uint32(s[12:])+le.Uint32(s[8:]))
	}
	if next > 1<<30 {
		return nil, fmt.Errorf("%w: it is as large as memory", ErrPE)
	}
	out := append([]byte(nil), stub...)
	for i, s := range sections {
		if len(s.name) > 8 || len(s.data) == 0 || len(s.data) > 1<<30 {
			return nil, fmt.Errorf("%w: section %s of %d bytes", ErrPE, s.name, len(s.data))
		}
		out, next = padTo(out, fileAlign), roundUp(next, align)
		h := out[p.table+(p.count+i)*sectionSize:][:sectionSize]
		clear(h)
		copy(h, s.name)
		le.PutUint32(h[8:], uint32(len(s.data)))
		le.PutUint32(h[12:], next)
		le.PutUint32(h[16:], roundUp(uint32(len(s.data)), fileAlign))
		le.PutUint32(h[20:], uint32(len(out)))
		le.PutUint32(h[36:], dataReadable)
		out, next = append(out, s.data...), next+uint32(len(s.data))
	}
	out = padTo(out, fileAlign)
	le.PutUint16(out[p.optional-coffSize+coffSections:], uint16(p.count+len(sections)))
	le.PutUint32(out[p.optional+optImageSize:], roundUp(next, align))
	le.PutUint32(out[p.optional+optCheckSum:], 0)
	return out, nil
}

// authenticode is the SHA-256 digest by which firmware knows an EFI program: of the whole
// file but its checksum, its signature and where that is. Sections must cover
// the file without gaps, as they do in kernels and in what unify makes.
// Source: Microsoft "Windows Authenticode Portable Executable Signature Format".
func authenticode(raw []byte) ([]byte, error) {
	p, err := parsePE(raw)
	if err != nil {
		return nil, err
	}
	h := sha256.New()
	end := len(raw)
	if p.certSize > 0 {
		end = p.certificates
	}
	h.Write(raw[:p.optional+optCheckSum])
	h.Write(raw[p.optional+optCheckSum+4 : p.optional+optDirectories])
	h.Write(raw[p.optional+optDirectories+8 : end])
	return h.Sum(nil), nil
}

// sectionData returns the content of a section of an EFI program.
func sectionData(raw []byte, name string) ([]byte, error) {
	p, err := parsePE(raw)
	if err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	var field [8]byte
	copy(field[:], name)
	for i := range p.count {
		h := raw[p.table+i*sectionSize:]
		size, at := uint64(min(le.Uint32(h[8:]), le.Uint32(h[16:]))), uint64(le.Uint32(h[20:]))
		if string(h[:8]) == string(field[:]) {
			if at+size > uint64(len(raw)) {
				return nil, ErrPE
			}
			return raw[at : at+size], nil
		}
	}
	return nil, fmt.Errorf("%w: %s", errSection, name)
}

func roundUp(n, to uint32) uint32 { return (n + to - 1) / to * to }

func padTo(b []byte, to uint32) []byte {
	return append(b, make([]byte, roundUp(uint32(len(b)), to)-uint32(len(b)))...)
}
