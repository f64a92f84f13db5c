package layer

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/untar"
)

// decryptText is what kata's end-to-end tests look for.
// Source: kata-containers tests/integration/kubernetes/k8s-guest-pull-image-encrypted.bats
// at 7c6ba40c.
const decryptText = "Failed to decrypt the image layer, please ensure that the decryption key is placed and correct"

var (
	// ErrDecrypt is the one answer when an encrypted layer cannot be opened:
	// no usable key, or ciphertext, HMAC, digest and key do not fit together.
	// Its text never depends on decrypted bytes.
	ErrDecrypt = errors.New("decrypting the layer")
	// ErrDigest says that a plain blob does not have the digest of its
	// descriptor, or that a digest of the Spec is malformed.
	ErrDigest = errors.New("blob digest mismatch")
	// ErrDiffID says that the unpacked tar is not the one the image config names.
	ErrDiffID = errors.New("diffID mismatch")
	// ErrTruncated says that the blob ended before Spec.Size bytes. Fetching
	// it again may help.
	ErrTruncated = errors.New("blob is truncated")
	// ErrMediaType says that the layer's media type is not one of those listed
	// at Spec.
	ErrMediaType = errors.New("unsupported layer media type")
	// ErrArchive says that an authentic blob holds a broken or forbidden
	// compressed stream or tar.
	ErrArchive = untar.ErrArchive
	// ErrTooLarge says that the blob is longer than Spec.Size or that what is
	// in it exceeds a cap of Options or of this package.
	ErrTooLarge = untar.ErrTooLarge
)

// Spec describes a layer as its manifest descriptor and the image config do.
// The caller has checked both against the image's digest.
type Spec struct {
	// MediaType is one of
	//
	//	application/vnd.oci.image.layer.v1.tar                     (+gzip, +zstd)
	//	application/vnd.oci.image.layer.nondistributable.v1.tar    (+gzip, +zstd)
	//	application/vnd.docker.image.rootfs.diff.tar               (.gzip, .zstd)
	//	application/vnd.docker.image.rootfs.foreign.diff.tar       (.gzip)
	//
	// where the OCI forms may end in +encrypted.
	MediaType string
	// Digest of the blob as stored in the registry, sha256, sha384 or sha512.
	Digest string
	// Size of the blob in bytes.
	Size int64
	// DiffID is the digest of the plain tar.
	DiffID string
	// Annotations of the descriptor; they hold the wrapped keys.
	Annotations map[string]string
}

// Mode says how a layer is laid out on disk.
type Mode = untar.Mode

const (
	// Overlay makes a lower directory for overlayfs: owners, devices,
	// trusted and security attributes as in the tar, whiteouts as character
	// devices 0:0, opaque directories marked trusted.overlay.opaque=y.
	// Needs root.
	Overlay = untar.Overlay
	// Plain needs no privilege: owners are not changed, devices are skipped,
	// of the extended attributes only user.* are set, whiteouts stay .wh.
	// marker files for Merge. Owner permissions are widened to 0400 for
	// files and 0700 for directories, so that the tree can be read and
	// removed again.
	Plain = untar.Plain
)

// RootEntry returns the state of the root of a layer that Apply made, and
// whether the layer's tar describes it; otherwise mode, owner and times are
// those of a fresh directory and mean nothing.
func RootEntry(dir string) (st unix.Stat_t, described bool, err error) {
	if err := unix.Lstat(dir, &st); err != nil {
		return st, false, fmt.Errorf("examining the layer root: %w", err)
	}
	return st, untar.IsDescribed(st), nil
}

// IsDescribed reports whether st, the state of a directory in a layer that Apply
// made, is what the layer's tar says of it. Otherwise the tar only has something
// in it, and what it is is for the layers below to say.
func IsDescribed(st unix.Stat_t) bool { return untar.IsDescribed(st) }

// HasImplied reports whether a layer that Apply made in Overlay mode has
// directories, other than its root, that its tar does not describe.
func HasImplied(dir string) (bool, error) {
	var b [1]byte
	_, err := unix.Lgetxattr(dir, untar.ImpliedXattr, b[:])
	if errors.Is(err, unix.ENODATA) {
		return false, nil
	}
	return err == nil, err
}

// Options bounds and shapes Apply. The zero value unpacks for overlayfs with
// the default caps.
type Options struct {
	Mode Mode
	// MaxBytes caps the plain tar stream, and separately the sum of the file
	// sizes in it (sparse files count in full); 0 means DefaultMaxBytes. What
	// really fits is up to the file system.
	MaxBytes int64
	// Room is how many bytes the file system of the directory can take when
	// Apply begins; 0 means that it is not known. A tar that is an eighth and
	// 16 MiB longer is unix.ENOSPC, whatever it says is in it.
	Room int64
	// MaxEntries caps tar entries plus parent directories created for them;
	// 0 means DefaultMaxEntries.
	MaxEntries int
	// Log receives warnings; nil drops them.
	Log *slog.Logger
}

const (
	// DefaultMaxBytes is room for a very large model in one layer.
	DefaultMaxBytes = untar.DefaultMaxBytes
	// DefaultMaxEntries is some ten times the largest layers seen in practice.
	DefaultMaxEntries = untar.DefaultMaxEntries
)

// Stats counts what Apply did.
type Stats struct {
	BlobBytes      int64 // read from the registry
	Bytes          int64 // plain tar
	Entries        int   // tar entries, whiteouts included
	SkippedDevices int   // Plain mode only
	SkippedXattrs  int   // attributes the mode or the file system does not allow
}
