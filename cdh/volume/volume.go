// Package volume reads the file in which a user describes a volume to mount, for
// the command-line tools. On sockets the same description is a message.
//
// Data path: file, then SecureMount of the data hub.
//
// Trust: whoever types the command wrote the file. It is read as strictly as
// everything else, so that a slip is an error and not another mount.
package volume

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/internal/strict"
	"github.com/sealpod/sealpod/podvm"
)

// MaxFile caps a description, in bytes.
const MaxFile = 1 << 20

// ErrFile says that bytes describe no volume.
var ErrFile = errors.New("not a description of a volume")

// Parse reads a JSON object with the members volume_type and mount_point, texts,
// options, an object of texts, and flags, an array of texts. All are required;
// others are ignored. Errors: ErrFile.
// Source: guest-components confidential-data-hub/hub/src/storage/volume_type/mod.rs
// at 8246e5e.
func Parse(raw []byte) (*datahub.SecureMountRequest, error) {
	req, err := parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return req, nil
}

// ReadFile is Parse for the file at path.
func ReadFile(path string) (*datahub.SecureMountRequest, error) {
	raw, err := podvm.ReadFileMax(path, MaxFile)
	if err != nil {
		return nil, err
	}
	req, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return req, nil
}

func parse(raw []byte) (*datahub.SecureMountRequest, error) {
	o, err := strict.Parse(raw)
	if err != nil {
		return nil, err
	}
	req := &datahub.SecureMountRequest{Options: map[string]string{}}
	if req.VolumeType, err = o.Text("volume_type"); err != nil {
		return nil, err
	}
	if req.MountPoint, err = o.Text("mount_point"); err != nil {
		return nil, err
	}
	for _, name := range []string{"options", "flags"} {
		if _, ok := o[name]; !ok {
			return nil, fmt.Errorf("member %q is missing", name)
		}
	}
	options, err := strict.Parse(o["options"])
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", "options", err)
	}
	for name := range options {
		if req.Options[name], err = options.Text(name); err != nil {
			return nil, fmt.Errorf("member %q: %w", "options", err)
		}
	}
	var flags []json.RawMessage
	if json.Unmarshal(o["flags"], &flags) != nil || flags == nil {
		return nil, fmt.Errorf("member %q: not an array", "flags")
	}
	for _, f := range flags {
		text, err := strict.Text(f)
		if err != nil {
			return nil, fmt.Errorf("member %q: %w", "flags", err)
		}
		req.Flags = append(req.Flags, text)
	}
	return req, nil
}
