package luks

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/sealpod/sealpod/cdh/internal/strict"
)

// keyslots reads the slots and returns their names.
func (m *metadata) keyslots(raw json.RawMessage) ([]string, error) {
	all, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 || len(all) > maxKeyslots {
		return nil, fmt.Errorf("there are %d, want 1 to %d", len(all), maxKeyslots)
	}
	names := slices.Sorted(maps.Keys(all))
	for _, name := range names {
		if _, err := bounded("the name of one", name, 0, 31); err != nil {
			return nil, err
		}
		if err := m.keyslot(all[name]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return names, nil
}

func (m *metadata) keyslot(raw json.RawMessage) error {
	o, err := object(raw, "type", "key_size", "af", "area", "kdf", "priority?")
	if err != nil {
		return err
	}
	if err := text(o, "type", "luks2"); err != nil {
		return err
	}
	if _, ok := o["priority"]; ok {
		if _, err := number(o, "priority", 0, 2); err != nil {
			return err
		}
	}
	// XTS takes two keys: AES-128 or AES-256 is 32 or 64 bytes.
	size, err := number(o, "key_size", 32, 64+hmacKeySize)
	if err != nil {
		return err
	}
	cipherKey := size
	if m.integrity {
		cipherKey -= hmacKeySize
	}
	if cipherKey != 32 && cipherKey != 64 {
		return fmt.Errorf("a key of %d bytes", size)
	}
	if m.keySize != 0 && m.keySize != size {
		return errors.New("its key size is not that of the others")
	}
	m.keySize = size
	if err := splitter(o["af"]); err != nil {
		return fmt.Errorf("af: %w", err)
	}
	if err := m.area(o["area"], size); err != nil {
		return fmt.Errorf("area: %w", err)
	}
	if err := derivation(o["kdf"]); err != nil {
		return fmt.Errorf("kdf: %w", err)
	}
	return nil
}

var hashes = []string{"sha256", "sha512", "sha1"} // sha1 only spreads bits, in af

func splitter(raw json.RawMessage) error {
	o, err := object(raw, "type", "stripes", "hash")
	if err != nil {
		return err
	}
	if _, err := number(o, "stripes", afStripes, afStripes); err != nil {
		return err
	}
	return errors.Join(text(o, "type", "luks1"), text(o, "hash", hashes...))
}

// area is where the encrypted key material is. A null cipher here would give
// the host a slot that opens with any passphrase.
func (m *metadata) area(raw json.RawMessage, keySize uint64) error {
	o, err := object(raw, "type", "offset", "size", "encryption", "key_size")
	if err != nil {
		return err
	}
	if err := errors.Join(text(o, "type", "raw"), text(o, "encryption", cipher)); err != nil {
		return err
	}
	if n, err := number(o, "key_size", 32, 64); err != nil || n != 32 && n != 64 {
		return fmt.Errorf("its key size is not 32 or 64")
	}
	var p place
	if p.offset, err = decimal(o, "offset", 2*minHeaderSize, maxAreaSize); err != nil {
		return err
	}
	if p.size, err = decimal(o, "size", keySize*afStripes, maxAreaSize); err != nil {
		return err
	}
	if p.offset%4096 != 0 || p.size%4096 != 0 {
		return fmt.Errorf("it is not aligned to 4096 bytes")
	}
	m.slots = append(m.slots, p)
	return nil
}

func derivation(raw json.RawMessage) error {
	kind, err := strict.Parse(raw)
	if err != nil {
		return err
	}
	switch name, _ := kind.Text("type"); name {
	case "pbkdf2":
		o, err := object(raw, "type", "hash", "iterations", "salt")
		if err != nil {
			return err
		}
		if _, err := number(o, "iterations", 1000, maxPBKDF2); err != nil {
			return err
		}
		return errors.Join(text(o, "hash", "sha256", "sha512"), salt(o))
	case "argon2id", "argon2i":
		o, err := object(raw, "type", "time", "memory", "cpus", "salt")
		if err != nil {
			return err
		}
		memory, err := number(o, "memory", 8, maxArgonKiB)
		if err != nil {
			return err
		}
		if _, err := number(o, "time", 1, maxArgonWork/memory); err != nil {
			return err
		}
		if _, err := number(o, "cpus", 1, 4); err != nil {
			return err
		}
		return salt(o)
	}
	return errors.New("its type is not supported")
}

func salt(o strict.Object) error {
	b, err := o.Bytes("salt")
	if err == nil && (len(b) < 16 || len(b) > 64) {
		err = fmt.Errorf("a salt of %d bytes", len(b))
	}
	return err
}

// digests must hold one, which binds all slots to the segment.
func digests(raw json.RawMessage, slots []string) error {
	all, err := object(raw, "0")
	if err != nil {
		return fmt.Errorf("want exactly one, 0: %w", err)
	}
	o, err := object(all["0"], "type", "keyslots", "segments", "hash", "iterations", "salt", "digest")
	if err != nil {
		return err
	}
	if err := errors.Join(text(o, "type", "pbkdf2"), text(o, "hash", "sha256", "sha512"), salt(o)); err != nil {
		return err
	}
	if _, err := number(o, "iterations", 1000, maxPBKDF2); err != nil {
		return err
	}
	if d, err := o.Bytes("digest"); err != nil || len(d) < 16 || len(d) > 64 {
		return errors.New("its digest is not one")
	}
	if err := list(o["keyslots"], slots); err != nil {
		return fmt.Errorf("keyslots: %w", err)
	}
	if err := list(o["segments"], []string{"0"}); err != nil {
		return fmt.Errorf("segments: %w", err)
	}
	return nil
}

// list checks that raw is a JSON list of the names in want.
func list(raw json.RawMessage, want []string) error {
	var got []string
	if err := json.Unmarshal(raw, &got); err != nil || len(got) > 64 {
		return errors.New("not a list of names")
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		return errors.New("it does not name all there are, once each: " + strconv.Itoa(len(got)))
	}
	return nil
}
