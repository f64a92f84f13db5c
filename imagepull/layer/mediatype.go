package layer

import (
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

type compression int

const (
	uncompressed compression = iota
	gzipped
	zstded
)

// format is what a media type says about a blob.
type format struct {
	compression compression
	encrypted   bool
}

// formatOf reads a layer media type.
// Source: opencontainers image-spec v1.1.1 layer.md, containers/ocicrypt
// v1.3.2 spec/spec.go, docker/distribution manifest v2.2.
func formatOf(mediaType string) (format, error) {
	for _, base := range []string{
		"application/vnd.oci.image.layer.v1.tar",
		"application/vnd.oci.image.layer.nondistributable.v1.tar",
	} {
		if suffix, ok := strings.CutPrefix(mediaType, base); ok {
			suffix, encrypted := strings.CutSuffix(suffix, "+encrypted")
			switch suffix {
			case "":
				return format{uncompressed, encrypted}, nil
			case "+gzip":
				return format{gzipped, encrypted}, nil
			case "+zstd":
				return format{zstded, encrypted}, nil
			}
		}
	}
	switch mediaType {
	case "application/vnd.docker.image.rootfs.diff.tar", "application/vnd.docker.image.rootfs.foreign.diff.tar":
		return format{compression: uncompressed}, nil
	case "application/vnd.docker.image.rootfs.diff.tar.gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":
		return format{compression: gzipped}, nil
	case "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return format{compression: zstded}, nil
	}
	return format{}, fmt.Errorf("%w: %q", ErrMediaType, podvm.Printable(mediaType, 128))
}

// Encrypted says whether a layer of that media type has to be decrypted. It is
// what Apply goes by: a blob that does not decrypt then is an error, and keys
// of a layer that is not encrypted are never asked for.
//
// Errors: ErrMediaType.
func Encrypted(mediaType string) (bool, error) {
	f, err := formatOf(mediaType)
	return f.encrypted, err
}
