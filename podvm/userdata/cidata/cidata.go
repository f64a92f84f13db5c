// Package cidata reads the user data from the disk that libvirt's pod VMs get it
// on: an ISO 9660 image with the volume label "cidata".
//
// Data path: package userdata asks it when nobody has mounted the disk.
//
// Trust: the image is the host's and hostile. It is read here rather than
// mounted, so that no file system driver of the kernel sees it and nobody needs
// the right to mount: what is looked at are a few descriptors, one directory of
// at most 64 KiB, and one file, each within bounds. Nothing of the image is
// followed twice.
//
// It knows the names of plain ISO 9660, of Rock Ridge and of Joliet, no
// directories, no files in several extents and no interleaving.
//
// Sources: ECMA-119 (ISO 9660) sections 8 and 9; IEEE P1282 (Rock Ridge) section
// 4.1.4; Joliet specification, version 1; cloud-init's NoCloud data source for
// the label and the name.
package cidata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"

	"github.com/sealpod/sealpod/podvm"
)

// Label is the label of the volume, in either case; FileName is the file.
const (
	Label    = "cidata"
	FileName = "user-data"
)

// What Read tells apart.
var (
	// ErrFormat says that bytes are not an ISO 9660 image within our bounds.
	ErrFormat = errors.New("not an ISO 9660 image as expected")
	// ErrLabel says that the image has another label.
	ErrLabel = errors.New("the volume label is not " + Label)
	// ErrNoFile says that there is no such file.
	ErrNoFile = errors.New("no file " + FileName + " on the disk")
)

// Sizes in bytes and positions. Source: ECMA-119 6.1.2, 8.4, 9.1.
const (
	sector          = 2048
	firstDescriptor = 16
	maxDescriptors  = 16
	maxDirectory    = 64 << 10

	typePrimary       = 1
	typeSupplementary = 2
	typeEnd           = 255
	recordHeader      = 33
	flagDirectory     = 0x02
	flagMoreExtents   = 0x80
)

// Read returns the content of the file, which is no longer than limit bytes.
//
// Errors: ErrFormat, ErrLabel, ErrNoFile, podvm.ErrTooLarge and those of r.
func Read(r io.ReaderAt, limit int64) ([]byte, error) {
	primary, joliet, err := descriptors(r)
	if err != nil {
		return nil, err
	}
	if label := strings.TrimRight(string(primary[40:72]), " \x00"); !strings.EqualFold(label, Label) {
		return nil, fmt.Errorf("%w but %q", ErrLabel, podvm.Printable(label, 32))
	}
	at, err := find(r, primary, plainName)
	if errors.Is(err, ErrNoFile) && joliet != nil {
		at, err = find(r, joliet, jolietName)
	}
	if err != nil {
		return nil, err
	}
	if at.size > limit {
		return nil, fmt.Errorf("reading %s: %w: more than %d bytes", FileName, podvm.ErrTooLarge, limit)
	}
	return at.read(r)
}

// extent is a run of bytes of the image.
type extent struct{ offset, size int64 }

func (e extent) read(r io.ReaderAt) ([]byte, error) {
	b := make([]byte, e.size)
	n, err := r.ReadAt(b, e.offset)
	if int64(n) == e.size {
		return b, nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = fmt.Errorf("%w: it ends at byte %d", ErrFormat, e.offset+int64(n))
	}
	return nil, err
}

// descriptors returns the primary volume descriptor, and the one of Joliet or
// nil.
func descriptors(r io.ReaderAt) (primary, joliet []byte, err error) {
	for i := range int64(maxDescriptors) {
		d, err := extent{(firstDescriptor + i) * sector, sector}.read(r)
		if err != nil {
			return nil, nil, fmt.Errorf("reading volume descriptors: %w", err)
		}
		if string(d[1:6]) != "CD001" {
			return nil, nil, fmt.Errorf("%w: no volume descriptor in sector %d", ErrFormat, firstDescriptor+i)
		}
		switch escape := string(d[88:91]); {
		case d[0] == typePrimary && primary == nil:
			primary = d
		case d[0] == typeSupplementary && joliet == nil && (escape == "%/@" || escape == "%/C" || escape == "%/E"):
			joliet = d
		case d[0] == typeEnd && primary != nil:
			return primary, joliet, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: no primary volume descriptor, or no end of them", ErrFormat)
}

// find looks for the file in the root directory of a volume.
func find(r io.ReaderAt, volume []byte, name func(record []byte) string) (extent, error) {
	if size := binary.LittleEndian.Uint16(volume[128:]); size != sector {
		return extent{}, fmt.Errorf("%w: blocks of %d bytes", ErrFormat, size)
	}
	root := place(volume[156:190])
	if root.size > maxDirectory {
		return extent{}, fmt.Errorf("%w: a directory of %d bytes", ErrFormat, root.size)
	}
	dir, err := root.read(r)
	if err != nil {
		return extent{}, fmt.Errorf("reading the directory: %w", err)
	}
	for at := 0; at < len(dir); {
		size := int(dir[at])
		if size == 0 { // records do not cross sectors
			at = (at/sector + 1) * sector
			continue
		}
		if size <= recordHeader || at+size > len(dir) {
			return extent{}, fmt.Errorf("%w: a directory record of %d bytes", ErrFormat, size)
		}
		record := dir[at : at+size]
		if recordHeader+int(record[32]) > size {
			return extent{}, fmt.Errorf("%w: a name of %d bytes in a record of %d", ErrFormat, record[32], size)
		}
		if name(record) == FileName {
			// An extended attribute record or interleaving would put the content
			// elsewhere.
			if record[25]&(flagDirectory|flagMoreExtents) != 0 || record[1] != 0 || record[26] != 0 || record[27] != 0 {
				return extent{}, fmt.Errorf("%w: %s is not a plain file", ErrFormat, FileName)
			}
			return place(record), nil
		}
		at += size
	}
	return extent{}, ErrNoFile
}

// place returns where the content of a record is.
func place(record []byte) extent {
	return extent{
		offset: int64(binary.LittleEndian.Uint32(record[2:])) * sector,
		size:   int64(binary.LittleEndian.Uint32(record[10:])),
	}
}

// plainName returns the name of a record as a mount would show it: that of Rock
// Ridge, or the identifier in lower case without its version.
func plainName(record []byte) string {
	n := int(record[32])
	end := recordHeader + n
	if n%2 == 0 {
		end++ // padding
	}
	for use := record[min(end, len(record)):]; len(use) >= 4 && int(use[2]) >= 4 && int(use[2]) <= len(use); use = use[use[2]:] {
		if string(use[:2]) == "NM" && use[2] > 5 && use[4] == 0 {
			return string(use[5:use[2]])
		}
	}
	return strings.ToLower(version(string(record[recordHeader : recordHeader+n])))
}

// jolietName returns the name of a record in UCS-2, big-endian.
func jolietName(record []byte) string {
	raw := record[recordHeader : recordHeader+int(record[32])]
	units := make([]uint16, len(raw)/2)
	for i := range units {
		units[i] = binary.BigEndian.Uint16(raw[2*i:])
	}
	return version(string(utf16.Decode(units)))
}

// version cuts the version off an identifier, and the dot of an empty extension.
func version(id string) string {
	id, _, _ = strings.Cut(id, ";")
	return strings.TrimSuffix(id, ".")
}
