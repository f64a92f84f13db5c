package zfs

import (
	"strings"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// CheckNames refuses names that zpool and zfs would refuse or read as something
// else: an option, a snapshot, a kind of vdev.
// Source: OpenZFS zpoolconcepts(7), zpool-create(8).
//
// Errors: tool.ErrOption.
func CheckNames(pool, dataset string) error {
	if !valid(pool) || !letter(pool[0]) {
		return tool.Option("pool %q is not a name", podvm.Printable(pool, 64))
	}
	for _, kind := range []string{"mirror", "raidz", "draid", "spare", "log"} {
		if strings.HasPrefix(pool, kind) {
			return tool.Option("pool %q: names that begin with %s are reserved", podvm.Printable(pool, 64), kind)
		}
	}
	if !valid(dataset) {
		return tool.Option("dataset %q is not a name", podvm.Printable(dataset, 64))
	}
	return nil
}

func letter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// valid is one component of a name. ZFS allows 255 bytes for all of them.
func valid(s string) bool {
	if s == "" || len(s) > 120 || !letter(s[0]) && (s[0] < '0' || s[0] > '9') {
		return false
	}
	return strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.:-") == ""
}
