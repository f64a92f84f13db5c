package registry

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// ErrReference says that a text is not an image reference.
var ErrReference = errors.New("invalid image reference")

const (
	maxReference  = 4096 // bytes of a whole reference; longer text is refused unread
	maxRepository = 255  // bytes of host and path together, as docker has it
	dockerHub     = "docker.io"
)

// The grammar of distribution/reference, in pieces.
// Source: distribution/reference regexp.go and reference.go at v0.6.0.
var (
	hostRE = regexp.MustCompile(`^(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	pathRE = regexp.MustCompile(`^[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*$`)
	tagRE  = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
)

// Reference names an image. Tag and Digest are both kept when both are given;
// requests then go by Digest. One of them is always set.
type Reference struct {
	Registry   string // host[:port] in lower case; "docker.io" for Docker Hub
	Repository string // path without the host, "library/" added for Docker Hub
	Tag        string // "" when only a digest was given
	Digest     string // "algo:hex" or ""
}

// ParseReference reads [host[:port]/]path[:tag][@digest] as docker does: a first
// component without dot, colon and other than "localhost" belongs to the path,
// and a reference without tag and digest means "latest". It accepts sha256,
// sha384 and sha512 digests. The host comes out in lower case, so that rules,
// credentials and policies written for it apply however it is spelled.
// Everything else is ErrReference.
func ParseReference(text string) (Reference, error) {
	ref, err := parseReference(text)
	if err != nil {
		shown := podvm.Printable(text, 256)
		return Reference{}, podvm.Explain(fmt.Errorf("%w %q: %w", ErrReference, shown, err),
			fmt.Sprintf("invalid image reference %q: %v", shown, err))
	}
	return ref, nil
}

func parseReference(text string) (Reference, error) {
	if len(text) > maxReference {
		return Reference{}, errors.New("too long")
	}
	var ref Reference
	name, digest, hasDigest := strings.Cut(text, "@")
	if hasDigest {
		if err := checkDigest(digest); err != nil {
			return Reference{}, err
		}
		ref.Digest = digest
	}
	if i := strings.LastIndexByte(name, ':'); i > strings.LastIndexByte(name, '/') {
		name, ref.Tag = name[:i], name[i+1:]
		if !tagRE.MatchString(ref.Tag) {
			return Reference{}, errors.New("malformed tag")
		}
	}
	ref.Registry, ref.Repository = splitHost(name)
	switch {
	case !hostRE.MatchString(ref.Registry):
		return Reference{}, errors.New("malformed registry host")
	case !pathRE.MatchString(ref.Repository):
		return Reference{}, errors.New("malformed repository name")
	case len(ref.Registry)+1+len(ref.Repository) > maxRepository:
		return Reference{}, fmt.Errorf("repository name longer than %d bytes", maxRepository)
	}
	if ref.Tag == "" && ref.Digest == "" {
		ref.Tag = "latest"
	}
	return ref, nil
}

// splitHost separates the registry of a name and applies Docker Hub's rules.
func splitHost(name string) (host, path string) {
	first, rest, found := strings.Cut(name, "/")
	switch {
	case !found:
		return dockerHub, "library/" + name
	case !looksLikeHost(first):
		return dockerHub, name
	}
	first = strings.ToLower(first)
	switch {
	case first != dockerHub && first != "index.docker.io":
		return first, rest
	case !strings.Contains(rest, "/"):
		return dockerHub, "library/" + rest
	}
	return dockerHub, rest
}

// looksLikeHost tells a registry from the first directory of a path. Docker
// takes a single word with a capital for a host too; upstream does not, and in
// lower case it would be none any more.
// Source: rust-oci-client src/reference.rs split_domain at 83092a6.
func looksLikeHost(s string) bool {
	return s == "localhost" || strings.ContainsAny(s, ".:")
}

// Name returns host/path, without tag and digest.
func (r Reference) Name() string { return r.Registry + "/" + r.Repository }

// String returns the canonical text, which ParseReference reads back.
func (r Reference) String() string {
	s := r.Name()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// target is what a manifest request asks for: the digest, or else the tag.
func (r Reference) target() string {
	if r.Digest != "" {
		return r.Digest
	}
	return r.Tag
}
