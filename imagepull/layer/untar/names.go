package untar

import (
	"fmt"
	"path"
	"strings"
)

const (
	maxDepth = 256  // directories above a name; also what removing a tree needs in descriptors
	maxPath  = 4096 // PATH_MAX
	maxName  = 255  // NAME_MAX
)

// Marker names of the layer format.
// Source: opencontainers image-spec v1.1.1 layer.md, "Whiteouts".
const (
	WhiteoutPrefix = ".wh."         // followed by the name to hide
	OpaqueMarker   = ".wh..wh..opq" // hides all below its directory
	aufsPrefix     = ".wh..wh."     // other bookkeeping of AUFS
)

// clean turns a name of the tar into a path below the root without ".", empty
// or ".." components; "" is the root itself. A leading slash is dropped, a
// ".." component is refused: none of them is ever needed in a layer.
func clean(name string) (string, error) {
	if strings.IndexByte(name, 0) >= 0 {
		return "", fmt.Errorf("%w: NUL in a name", ErrArchive)
	}
	parts := make([]string, 0, 16)
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return "", fmt.Errorf("%w: name goes up (..)", ErrArchive)
		case len(part) > maxName:
			return "", fmt.Errorf("%w: name of %d bytes, more than %d", ErrTooLarge, len(part), maxName)
		case len(parts) == maxDepth:
			return "", fmt.Errorf("%w: more than %d directories deep", ErrTooLarge, maxDepth)
		}
		parts = append(parts, part)
	}
	clean := strings.Join(parts, "/")
	if len(clean) >= maxPath {
		return "", fmt.Errorf("%w: path of %d bytes", ErrTooLarge, len(clean))
	}
	return clean, nil
}

// split returns the directory, "" for the root, and the last component of a
// clean path.
func split(name string) (dir, base string) {
	dir, base = path.Split(name)
	return strings.TrimSuffix(dir, "/"), base
}

// marker says what a clean path means for lower layers.
type marker int

const (
	noMarker marker = iota
	whiteout        // hides one name
	opaque          // hides a directory's content
	ignored         // AUFS metadata, nothing to unpack
)

// markerOf classifies a clean path and returns the hidden name of a whiteout.
func markerOf(dir, base string) (m marker, hidden string, err error) {
	for part := range strings.SplitSeq(dir, "/") {
		if strings.HasPrefix(part, aufsPrefix) {
			return ignored, "", nil
		}
		if strings.HasPrefix(part, WhiteoutPrefix) {
			return 0, "", fmt.Errorf("%w: whiteout used as a directory", ErrArchive)
		}
	}
	hidden, ok := strings.CutPrefix(base, WhiteoutPrefix)
	switch {
	case !ok:
		return noMarker, "", nil
	case base == OpaqueMarker:
		return opaque, "", nil
	case strings.HasPrefix(base, aufsPrefix):
		return ignored, "", nil
	case hidden == "" || hidden == "." || hidden == "..":
		return 0, "", fmt.Errorf("%w: whiteout of %q", ErrArchive, hidden)
	}
	return whiteout, hidden, nil
}
