package volume

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// ErrAnnotation says that the annotation is malformed, or asks for something that
// is not supported.
var ErrAnnotation = errors.New("corrupt cloud_volumes annotation")

// Caps of an annotation.
const (
	maxAnnotation = 256 << 10 // bytes
	maxVolumes    = 64
	maxField      = 4095 // bytes
	maxName       = 119  // bytes; with caa- and the suffix of an integrity layer, a name of the device-mapper
	maxLUN        = 16383
	maxDiskID     = 1024 // bytes; a resource ID of Azure is a path
)

// Volume is one entry of the annotation, checked.
type Volume struct {
	Name       string // a bare file name of letters, digits and "#+-.:=@_", at most 119 bytes
	MountPoint string // where the container wants it: absolute, as the annotation has it
	LUN        int    // 0 to 16383
	DiskID     string // the cloud's name for the disk, "" if unknown; only AWS needs it
	FSType     string // ext4, ext3 or xfs
	FSGroup    *int   // the group that may write, nil for none
	KeyID      string // REPOSITORY/TYPE/TAG of the key of an encrypted volume, "" for a plain one
}

// Encrypted reports whether the data hub opens the volume.
func (v Volume) Encrypted() bool { return v.KeyID != "" }

// entry is a volume as the worker node writes it. Keys are taken as they are
// written and once: to encoding/json Encrypt_Type is encrypt_type too, and the last
// one counts, but not to the policy of kata-agent, which judges the same annotation.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/util/cloud.go at fbdde756.
type entry struct {
	MountPoint  string `json:"mount_point"`
	FSType      string `json:"fs_type"`
	LUN         string `json:"lun"`
	DiskID      string `json:"disk_id"`
	FSGroup     string `json:"fs_group"`
	EncryptType string `json:"encrypt_type"`
	KeyID       string `json:"key_id"`
}

var entryKeys = []string{"mount_point", "fs_type", "lun", "disk_id", "fs_group", "encrypt_type", "key_id"}

// Parse reads the annotation: a JSON object with a volume under each name. It
// returns them sorted by name. Keys of a volume that nobody knows are ignored, unless
// they are a known one in another case. No two are at the same mount point. The
// empty annotation has no volumes.
//
// Errors: ErrAnnotation, with the reason as its cause.
func Parse(annotation string) ([]Volume, error) {
	volumes, err := parse(annotation)
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("%w: %w", ErrAnnotation, err), ErrAnnotation.Error()+": "+err.Error())
	}
	return volumes, nil
}

// parse is Parse whose errors are safe to show.
func parse(annotation string) ([]Volume, error) {
	if annotation == "" {
		return nil, nil
	}
	if len(annotation) > maxAnnotation {
		return nil, fmt.Errorf("longer than %d bytes", maxAnnotation)
	}
	if !utf8.ValidString(annotation) {
		return nil, errors.New("not UTF-8")
	}
	var volumes []Volume
	err := members([]byte(annotation), func(name string, raw json.RawMessage) error {
		shown := podvm.Printable(name, 64)
		if slices.ContainsFunc(volumes, func(v Volume) bool { return v.Name == name }) {
			return fmt.Errorf("volume %q is there twice", shown)
		}
		if len(volumes) == maxVolumes {
			return fmt.Errorf("more than %d volumes", maxVolumes)
		}
		v, err := parseEntry(name, raw)
		if err != nil {
			return fmt.Errorf("volume %q: %w", shown, err)
		}
		// The last would win, and hide one that a policy wants there.
		at := path.Clean(v.MountPoint)
		if i := slices.IndexFunc(volumes, func(o Volume) bool { return path.Clean(o.MountPoint) == at }); i >= 0 {
			return fmt.Errorf("volumes %q and %q both belong at %s", volumes[i].Name, shown, podvm.Printable(at, 64))
		}
		volumes = append(volumes, v)
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(volumes, func(a, b Volume) int { return strings.Compare(a.Name, b.Name) })
	return volumes, nil
}

// members calls f for each member of the JSON object that is all of raw.
func members(raw []byte, f func(key string, value json.RawMessage) error) error {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("not a JSON object")
	}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		var value json.RawMessage
		if err != nil || !ok || d.Decode(&value) != nil {
			return errors.New("malformed JSON")
		}
		if err := f(key, value); err != nil {
			return err
		}
	}
	if _, err := d.Token(); err != nil {
		return errors.New("malformed JSON")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

func parseEntry(name string, raw json.RawMessage) (Volume, error) {
	var e entry
	if !bytes.HasPrefix(raw, []byte("{")) || json.Unmarshal(raw, &e) != nil {
		return Volume{}, errors.New("not a JSON object of strings")
	}
	seen := map[string]bool{}
	if err := members(raw, func(key string, _ json.RawMessage) error {
		foreign := func(k string) bool { return k != key && strings.EqualFold(k, key) }
		if seen[key] || slices.ContainsFunc(entryKeys, foreign) {
			return fmt.Errorf("key %q is there twice or is not the key it looks like", podvm.Printable(key, 32))
		}
		seen[key] = true
		return nil
	}); err != nil {
		return Volume{}, err
	}
	if !bareName(name) {
		return Volume{}, errors.New("the name is not a bare file name of letters, digits and #+-.:=@_, or too long")
	}
	for _, s := range []string{e.MountPoint, e.FSType, e.LUN, e.DiskID, e.FSGroup, e.EncryptType, e.KeyID} {
		if len(s) > maxField || strings.ContainsFunc(s, unicode.IsControl) {
			return Volume{}, errors.New("a value is too long or not text")
		}
	}
	v := Volume{Name: name, MountPoint: e.MountPoint, FSType: e.FSType}
	if !path.IsAbs(e.MountPoint) {
		return Volume{}, errors.New("mount_point is missing or not absolute")
	}
	var err error
	if v.LUN, err = decimal(e.LUN, maxLUN); err != nil {
		return Volume{}, fmt.Errorf("lun: %w", err)
	}
	switch v.FSType {
	case "":
		v.FSType = "ext4"
	case "ext4", "ext3", "xfs":
	default:
		return Volume{}, fmt.Errorf("fs_type %q is not supported, want ext4, ext3 or xfs", podvm.Printable(e.FSType, 32))
	}
	if v.DiskID, err = diskID(e.DiskID); err != nil {
		return Volume{}, err
	}
	if e.FSGroup != "" {
		gid, err := decimal(e.FSGroup, math.MaxUint32-1) // the last one means "unchanged"
		if err != nil {
			return Volume{}, fmt.Errorf("fs_group: %w", err)
		}
		v.FSGroup = &gid
	}
	v.KeyID, err = keyID(e.EncryptType, e.KeyID)
	return v, err
}

// bareName admits what is safe as a file name and behind "caa-" as a name of the
// device-mapper.
func bareName(s string) bool {
	return s != "" && len(s) <= maxName && s[0] != '-' && s[0] != '.' &&
		strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789#+-.:=@_") == ""
}

// decimal reads a number from 0 to limit, without sign or leading zeros.
func decimal(s string, limit uint64) (int, error) {
	n, err := strconv.ParseUint(s, 10, 63)
	if err != nil || n > limit || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", podvm.Printable(s, 32), limit)
	}
	return int(n), nil
}

// diskID checks what is compared with the names of devices, less its hyphens.
func diskID(s string) (string, error) {
	if len(s) > maxDiskID || s != "" && strings.Trim(s, "-") == "" {
		return "", errors.New("disk_id is too long, or has only hyphens")
	}
	return s, nil
}

// keyID returns the key's name in the relying party, "" when nothing is encrypted.
func keyID(encryptType, id string) (string, error) {
	switch strings.ToLower(encryptType) {
	case "":
		return "", nil // upstream ignores a key_id then
	case "luks", "luks2":
	default:
		return "", fmt.Errorf("encrypt_type %q is not supported, want luks or luks2", podvm.Printable(encryptType, 32))
	}
	if id == "" {
		return "", fmt.Errorf("encrypt_type %s needs key_id", podvm.Printable(encryptType, 32))
	}
	// Nothing in it may be dropped, resolved or escaped: what is asked for is what
	// was said.
	u, err := kbs.ParseURI(keyScheme + id)
	if err != nil || u.String() != keyScheme+id || u.Query() != "" || strings.Count(id, "/") != 2 || slices.Contains(strings.Split(id, "/"), "") {
		return "", fmt.Errorf("key_id %q is not REPOSITORY/TYPE/TAG", podvm.Printable(id, 128))
	}
	return id, nil
}

// keyScheme is put before a key_id.
const keyScheme = "kbs:///"
