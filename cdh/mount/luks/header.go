package luks

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// ErrHeader says that a LUKS2 header is damaged, or names something that this
// package does not open.
var ErrHeader = errors.New("LUKS2 header refused")

// Figures of the binary header.
// Source: LUKS2 On-Disk Format Specification 1.1.2, §2.1 to §2.2.
const (
	binarySize    = 4096 // of the binary header, in bytes, before the JSON area
	minHeaderSize = 16 << 10
	maxHeaderSize = 4 << 20 // binary header and JSON area
	// maxAreaSize bounds both headers and the key slots. cryptsetup makes
	// 16 MiB; its limit is 8 MiB + 128 MiB.
	maxAreaSize = 32 << 20

	offVersion     = 6
	offHeaderSize  = 8
	offSequence    = 16
	offChecksumAlg = 72
	offUUID        = 168
	offOffset      = 256
	offChecksum    = 448
)

var (
	magicPrimary   = []byte("LUKS\xba\xbe")
	magicSecondary = []byte("SKUL\xba\xbe")
)

// refused makes an ErrHeader whose text may leave the guest.
func refused(format string, args ...any) error {
	why := fmt.Sprintf(format, args...)
	return podvm.Explain(fmt.Errorf("%w: %s", ErrHeader, why), "the LUKS2 header of the volume was refused: "+why)
}

// hasMagic tells whether a device that starts with the bytes b carries a LUKS
// header of any version. 6 bytes are needed.
func hasMagic(b []byte) bool { return bytes.HasPrefix(b, magicPrimary) }

// readArea copies from device all that cryptsetup reads of a header: both
// copies and the key slots. The copy starts at offset 0 of the device.
//
// Errors: ErrHeader.
func readArea(device io.ReaderAt) ([]byte, error) {
	first := make([]byte, binarySize)
	if err := readAt(device, first, 0); err != nil {
		return nil, err
	}
	var size uint64
	switch {
	case hasMagic(first):
		if err := isLUKS2(first); err != nil {
			return nil, err
		}
		size = binary.BigEndian.Uint64(first[offHeaderSize:])
	case len(bytes.Trim(first, "\x00")) == 0:
		// A format that was cut off before its last write, see commit.
		at, err := findSecondary(device)
		if err != nil {
			return nil, err
		}
		size = uint64(at)
	default:
		return nil, refused("there is none")
	}
	if !validHeaderSize(size) {
		return nil, refused("a metadata size of %d bytes", size)
	}
	both := make([]byte, 2*size)
	if err := readAt(device, both, 0); err != nil {
		return nil, err
	}
	mend(both, int(size))
	doc, err := parseCopies(both, int(size))
	if err != nil {
		return nil, err
	}
	m, err := parseMetadata(doc)
	if err != nil {
		return nil, err
	}
	total := 2*size + m.keyslotsSize // parseMetadata bounds it
	if total > maxAreaSize {
		return nil, refused("a header of %d bytes", total)
	}
	area := make([]byte, total)
	copy(area, both)
	if err := readAt(device, area[len(both):], int64(len(both))); err != nil {
		return nil, err
	}
	return area, nil
}

func isLUKS2(binaryHeader []byte) error {
	if v := binary.BigEndian.Uint16(binaryHeader[offVersion:]); v != 2 {
		return refused("version %d, only LUKS2 is supported", v)
	}
	return nil
}

func readAt(r io.ReaderAt, b []byte, off int64) error {
	if _, err := r.ReadAt(b, off); err != nil {
		if errors.Is(err, io.EOF) {
			return refused("the device is smaller than it")
		}
		return fmt.Errorf("reading the header: %w", err)
	}
	return nil
}

func validHeaderSize(n uint64) bool {
	return n >= minHeaderSize && n <= maxHeaderSize && n&(n-1) == 0
}

// findSecondary returns where the second copy of a header is: at the size of
// the first, a power of two.
func findSecondary(device io.ReaderAt) (int64, error) {
	for at := int64(minHeaderSize); at <= maxHeaderSize; at *= 2 {
		b := make([]byte, len(magicSecondary))
		if _, err := device.ReadAt(b, at); err != nil {
			break
		}
		if bytes.Equal(b, magicSecondary) {
			return at, nil
		}
	}
	return 0, refused("there is none")
}

// mend makes the first copy from the second where the binary header of the
// first was never written: all zero. Anything else is left to the checks.
func mend(both []byte, size int) {
	first, second := both[:size], both[size:]
	if len(bytes.Trim(first[:binarySize], "\x00")) > 0 || !bytes.HasPrefix(second, magicSecondary) {
		return
	}
	copy(first, second)
	copy(first, magicPrimary)
	binary.BigEndian.PutUint64(first[offOffset:], 0)
	sum := checksum(first)
	copy(first[offChecksum:], sum[:])
	clear(first[offChecksum+len(sum) : offChecksum+64])
}

// parseCopies checks both copies of a header, size bytes each, and returns
// their JSON text. They must agree: cryptsetup would take the newer one, and so
// another parser the other one.
func parseCopies(both []byte, size int) ([]byte, error) {
	if len(both) < 2*size || size <= binarySize {
		return nil, refused("cut short")
	}
	first, second := both[:size], both[size:2*size]
	for i, part := range [][]byte{first, second} {
		magic := [][]byte{magicPrimary, magicSecondary}[i]
		if !bytes.HasPrefix(part, magic) {
			return nil, refused("copy %d is missing; cryptsetup repair can restore it", i+1)
		}
		if err := isLUKS2(part); err != nil {
			return nil, err
		}
		if binary.BigEndian.Uint64(part[offHeaderSize:]) != uint64(size) {
			return nil, refused("the copies differ in size")
		}
		if binary.BigEndian.Uint64(part[offOffset:]) != uint64(i*size) {
			return nil, refused("copy %d says that it belongs elsewhere", i+1)
		}
		if string(bytes.TrimRight(part[offChecksumAlg:offChecksumAlg+32], "\x00")) != "sha256" {
			return nil, refused("its checksum is not SHA-256")
		}
		if sum := checksum(part); !bytes.Equal(append(sum[:], make([]byte, 64-len(sum))...), part[offChecksum:offChecksum+64]) {
			return nil, refused("the checksum of copy %d is wrong; cryptsetup repair can restore it from the other", i+1)
		}
	}
	if id := string(bytes.TrimRight(first[offUUID:offUUID+40], "\x00")); len(id) != 36 || strings.Trim(id, "0123456789abcdef-") != "" {
		return nil, refused("its UUID is not one") // it becomes part of a name in the kernel
	}
	same := func(from, to int) bool { return bytes.Equal(first[from:to], second[from:to]) }
	if !same(offSequence, offSequence+8) || !same(offUUID, offUUID+40) || !same(binarySize, size) {
		return nil, refused("its two copies differ; cryptsetup repair can restore it")
	}
	doc, rest, ended := bytes.Cut(first[binarySize:], []byte{0})
	if !ended || len(bytes.Trim(rest, "\x00")) > 0 {
		return nil, refused("bytes follow its JSON text")
	}
	return doc, nil
}

// checksum covers one copy with its checksum field taken as zero.
func checksum(part []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write(part[:offChecksum])
	h.Write(make([]byte, 64))
	h.Write(part[offChecksum+64:])
	return [sha256.Size]byte(h.Sum(nil))
}

// parseArea checks a copy made by readArea in full.
func parseArea(area []byte) (*metadata, error) {
	if len(area) < 2*minHeaderSize {
		return nil, refused("cut short")
	}
	size := binary.BigEndian.Uint64(area[offHeaderSize:])
	if !validHeaderSize(size) || 2*size > uint64(len(area)) {
		return nil, refused("a metadata size of %d bytes", size)
	}
	doc, err := parseCopies(area, int(size))
	if err != nil {
		return nil, err
	}
	m, err := parseMetadata(doc)
	if err != nil {
		return nil, err
	}
	return m, m.checkPlaces(size, uint64(len(area)))
}
