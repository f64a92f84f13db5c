package layer

import (
	"bytes"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// TestFullDisk holds that a plain layer stops being fetched when the disk is
// full, and that an encrypted one is read to its end and judged first: how much
// its plaintext writes is nobody's business unless it is authentic.
func TestFullDisk(t *testing.T) {
	mnt := t.TempDir()
	mount(t, "tmpfs", mnt, "size=1m")

	raw := tarOf(t, "big", noise(16<<20))
	plain := plainLayer(oci, raw, raw)
	sealed, _ := seal(t, plain)
	forged := sealed.with(func(s *sample) { s.blob[len(s.blob)-1] ^= 1; s.redigest() })
	tests := map[string]struct {
		s     sample
		err   error
		whole bool
	}{
		"plain":                    {plain, unix.ENOSPC, false},
		"encrypted":                {sealed, unix.ENOSPC, true},
		"encrypted, not authentic": {forged, ErrDecrypt, true},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			dir := mnt + "/layer"
			must(t, unix.Mkdir(dir, 0o755))
			defer func() { must(t, removeAll(mnt, "layer")) }()
			blob := &counting{Reader: bytes.NewReader(tt.s.blob)}
			_, err := Apply(t.Context(), blob, tt.s.spec, tt.s.key, dir, Options{Mode: Plain})
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if (blob.n == len(tt.s.blob)) != tt.whole {
				t.Errorf("read %d of %d bytes", blob.n, len(tt.s.blob))
			}
			if errors.Is(tt.err, ErrDecrypt) && (errors.Is(err, unix.ENOSPC) || podvm.Cause(err) != decryptText) {
				t.Errorf("tells of the disk: %v", err)
			}
		})
	}
}

func removeAll(dir, name string) error {
	d, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return err
	}
	return errors.Join(removeAt(d, name), d.Close())
}
