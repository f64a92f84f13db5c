package luks

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// The one cipher, and the costs a header may ask for before anything about it
// could be verified. cryptsetup's own defaults end at 1 GiB of memory, 4 threads
// and 2 s of work on the machine that made the header.
const (
	cipher           = "aes-xts-plain64"
	integrityHMAC    = "hmac(sha256)"
	hmacKeySize      = 32
	maxKeyslots      = 8
	maxArgonKiB      = 1 << 20
	maxArgonWork     = 64 << 20 // time times memory, in KiB: 64 GiB written
	maxPBKDF2        = 50_000_000
	afStripes        = 4000
	maxSegmentOffset = 1 << 30
)

// metadata is what the JSON area of an accepted header says.
type metadata struct {
	keyslotsSize uint64
	offset       uint64 // of the data, in bytes
	sectorSize   uint64 // 512 to 4096
	integrity    bool   // dm-integrity with HMAC-SHA256
	keySize      uint64 // in bytes, with that of the HMAC
	slots        []place
}

// place is where the key material of one slot is, in bytes.
type place struct{ offset, size uint64 }

// parseMetadata reads the JSON text of a header. Only what cryptsetup's
// luksFormat makes for one encrypted segment is accepted; a member it does not
// know is refused, because cryptsetup might act on it.
// Source: LUKS2 On-Disk Format Specification 1.1.2, §3.
func parseMetadata(doc []byte) (*metadata, error) {
	m := &metadata{}
	err := func() error {
		top, err := object(doc, "keyslots", "tokens", "segments", "digests", "config")
		if err != nil {
			return err
		}
		if err := m.config(top["config"]); err != nil {
			return fmt.Errorf("config: %w", err)
		}
		if tokens, err := strict.Parse(top["tokens"]); err != nil || len(tokens) > 0 {
			return errors.New("it has tokens, which are not supported (cryptsetup token remove)")
		}
		if err := m.segments(top["segments"]); err != nil {
			return fmt.Errorf("segments: %w", err)
		}
		names, err := m.keyslots(top["keyslots"])
		if err != nil {
			return fmt.Errorf("keyslots: %w", err)
		}
		if err := digests(top["digests"], names); err != nil {
			return fmt.Errorf("digests: %w", err)
		}
		return nil
	}()
	if err != nil {
		return nil, refused("%v", err)
	}
	return m, nil
}

// object parses raw, which may have the members in known and must have all of
// them but those that end in "?".
func object(raw json.RawMessage, known ...string) (strict.Object, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	for i, name := range known {
		optional := name[len(name)-1] == '?'
		if optional {
			known[i] = name[:len(name)-1]
		}
		if _, ok := o[known[i]]; !ok && !optional {
			return nil, fmt.Errorf("member %q is missing", name)
		}
	}
	for name := range o {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("member %q is not supported", podvm.Printable(name, 64))
		}
	}
	return o, nil
}

// text checks that a member is one of the values in allowed.
func text(o strict.Object, name string, allowed ...string) error {
	s, err := o.Text(name)
	if err != nil {
		return err
	}
	if !slices.Contains(allowed, s) {
		return fmt.Errorf("%s %q is not supported", name, podvm.Printable(s, 64))
	}
	return nil
}

// number reads a JSON number in min to max.
func number(o strict.Object, name string, min, max uint64) (uint64, error) {
	return bounded(name, string(o[name]), min, max)
}

// decimal reads a 64-bit number, which LUKS2 keeps in a string.
func decimal(o strict.Object, name string, min, max uint64) (uint64, error) {
	s, err := o.Text(name)
	if err != nil {
		return 0, err
	}
	return bounded(name, s, min, max)
}

func bounded(name, s string, min, max uint64) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%s is not a number", name)
	}
	if n < min || n > max {
		return 0, fmt.Errorf("%s is %d, want %d to %d", name, n, min, max)
	}
	return n, nil
}

func (m *metadata) config(raw json.RawMessage) error {
	o, err := object(raw, "json_size", "keyslots_size", "flags?")
	if err != nil {
		return err
	}
	if _, err := decimal(o, "json_size", minHeaderSize-binarySize, maxHeaderSize); err != nil {
		return err
	}
	if m.keyslotsSize, err = decimal(o, "keyslots_size", 4096, maxAreaSize); err != nil {
		return err
	}
	if m.keyslotsSize%4096 != 0 {
		return errors.New("keyslots_size is not a multiple of 4096")
	}
	if raw, ok := o["flags"]; ok {
		var flags []string
		if err := json.Unmarshal(raw, &flags); err != nil {
			return errors.New("flags are not a list")
		}
		for _, f := range flags { // these do not touch what is encrypted, or how
			if !slices.Contains([]string{"allow-discards", "same-cpu-crypt", "submit-from-crypt-cpus", "no-read-workqueue", "no-write-workqueue"}, f) {
				return fmt.Errorf("flag %q is not supported", podvm.Printable(f, 64))
			}
		}
	}
	return nil
}

func (m *metadata) segments(raw json.RawMessage) error {
	all, err := object(raw, "0")
	if err != nil {
		return fmt.Errorf("want exactly one, 0: %w", err)
	}
	o, err := object(all["0"], "type", "offset", "size", "iv_tweak", "encryption", "sector_size", "integrity?")
	if err != nil {
		return err
	}
	for _, err := range []error{
		text(o, "type", "crypt"), text(o, "size", "dynamic"), text(o, "iv_tweak", "0"), text(o, "encryption", cipher),
	} {
		if err != nil {
			return err
		}
	}
	if m.offset, err = decimal(o, "offset", 0, maxSegmentOffset); err != nil {
		return err
	}
	if m.sectorSize, err = number(o, "sector_size", 512, 4096); err != nil {
		return err
	}
	if m.sectorSize&(m.sectorSize-1) != 0 || m.offset%4096 != 0 {
		return fmt.Errorf("offset %d and sector size %d", m.offset, m.sectorSize)
	}
	if raw, ok := o["integrity"]; ok {
		i, err := object(raw, "type", "journal_encryption", "journal_integrity", "key_size?")
		if err != nil {
			return fmt.Errorf("integrity: %w", err)
		}
		for _, err := range []error{
			text(i, "type", integrityHMAC), text(i, "journal_encryption", "none"), text(i, "journal_integrity", "none"),
		} {
			if err != nil {
				return fmt.Errorf("integrity: %w", err)
			}
		}
		if _, ok := i["key_size"]; ok {
			if _, err := number(i, "key_size", hmacKeySize, hmacKeySize); err != nil {
				return fmt.Errorf("integrity: %w", err)
			}
		}
		m.integrity = true
	}
	return nil
}

// checkPlaces holds where things are against the sizes of one header and of the
// area with both and the key slots.
func (m *metadata) checkPlaces(headerSize, areaSize uint64) error {
	if areaSize != 2*headerSize+m.keyslotsSize {
		return refused("%d bytes of header, its sizes add up to %d", areaSize, 2*headerSize+m.keyslotsSize)
	}
	slots := slices.SortedFunc(slices.Values(m.slots), func(a, b place) int { return cmp.Compare(a.offset, b.offset) })
	free := 2 * headerSize
	for _, s := range slots {
		if s.offset < free || s.offset+s.size > areaSize {
			return refused("key material at %d overlaps something else", s.offset)
		}
		free = s.offset + s.size
	}
	return nil
}
