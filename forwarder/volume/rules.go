package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// ErrRefused says that the pod's owner does not want the volume.
var ErrRefused = errors.New("cloud volume not allowed")

// Rules say which volumes the pod's owner wants. They apply before the disk is looked
// at, and so before kata-agent's policy: to mount a plain volume is to have the kernel
// read a file system of the host's making, and to open an encrypted one is to fetch
// a resource and use it as a passphrase on the host's disk, where the host can try
// what it may have been.
type Rules struct {
	// Plain allows volumes without encryption.
	Plain bool `config:"plain"`
	// Keys are those that volumes may be encrypted with, as kbs:///REPOSITORY/TYPE/TAG.
	Keys []string `config:"keys"`
}

// LoadRules reads the table [cloud_volumes] of the data hub's configuration at path,
// which init data brings. Without the table, or the file, there are no rules, nil:
// every volume is allowed, as upstream has it. With the table only those are that it
// allows.
//
// Errors: podvm.ErrConfig for content, podvm.ErrTooLarge, why a file is not read.
func LoadRules(path string) (*Rules, error) {
	var c struct {
		CloudVolumes *Rules `config:"cloud_volumes"`
	}
	if _, err := podvm.LoadConfig(path, &c); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("reading the rules for cloud volumes: %w", err)
	}
	if c.CloudVolumes == nil {
		return nil, nil
	}
	for _, key := range c.CloudVolumes.Keys {
		id, ok := strings.CutPrefix(key, keyScheme)
		if _, err := keyID("luks2", id); !ok || err != nil {
			return nil, fmt.Errorf("%w: %s: [cloud_volumes] key %q is not kbs:///REPOSITORY/TYPE/TAG", podvm.ErrConfig, path, podvm.Printable(key, 128))
		}
	}
	return c.CloudVolumes, nil
}

// check returns ErrRefused for a volume that r, which may be nil, does not allow.
func (r *Rules) check(v Volume) error {
	switch {
	case r == nil, !v.Encrypted() && r.Plain, v.Encrypted() && slices.Contains(r.Keys, keyScheme+v.KeyID):
		return nil
	case v.Encrypted():
		return podvm.Explain(fmt.Errorf("%w: key %s", ErrRefused, v.KeyID), "the pod's configuration, [cloud_volumes] of cdh.toml, does not allow cloud volumes with this key")
	}
	return podvm.Explain(fmt.Errorf("%w: it is plain", ErrRefused), "the pod's configuration, [cloud_volumes] of cdh.toml, does not allow plain cloud volumes")
}
