package untar

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestXattrTolerance holds that only user.* may be missing from a file system:
// without trusted.* or security.* a layer would not be what it claims.
func TestXattrTolerance(t *testing.T) {
	tests := map[string]struct {
		mode    Mode
		kind    kind
		name    string
		set     error
		want    error
		skipped int
	}{
		"set":                               {Overlay, kindFile, "user.x", nil, nil, 0},
		"user, file system has none":        {Overlay, kindFile, "user.x", unix.ENOTSUP, nil, 1},
		"user on a symlink":                 {Overlay, kindSymlink, "user.x", unix.EPERM, nil, 1},
		"user on a device":                  {Overlay, kindSpecial, "user.x", unix.EPERM, nil, 1},
		"user on a file, forbidden":         {Overlay, kindFile, "user.x", unix.EPERM, unix.EPERM, 0},
		"user, no space":                    {Overlay, kindFile, "user.x", unix.ENOSPC, unix.ENOSPC, 0},
		"capability, file system has none":  {Overlay, kindFile, "security.capability", unix.ENOTSUP, unix.ENOTSUP, 0},
		"trusted, file system has none":     {Overlay, kindFile, "trusted.x", unix.ENOTSUP, unix.ENOTSUP, 0},
		"capability in plain mode":          {Plain, kindFile, "security.capability", unix.EPERM, nil, 1},
		"access list in plain mode":         {Plain, kindFile, "system.posix_acl_access", nil, nil, 1},
		"user in plain mode, fs has none":   {Plain, kindFile, "user.x", unix.ENOTSUP, nil, 1},
		"malformed attribute, Linux's view": {Overlay, kindFile, "nonsense", unix.EOPNOTSUPP, unix.EOPNOTSUPP, 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s := &setter{mode: tt.mode}
			err := s.setXattrs(tt.kind, []xattr{{tt.name, "v"}}, func(string, []byte) error { return tt.set })
			if !errors.Is(err, tt.want) || (err != nil) != (tt.want != nil) || s.skipped != tt.skipped {
				t.Errorf("%v, %d skipped", err, s.skipped)
			}
		})
	}
}
