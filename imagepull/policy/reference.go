package policy

import (
	"fmt"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sealpod/sealpod/podvm"
)

// FoldHost returns a name host[:port][/path…] with the host in lower case: a
// policy for a registry holds however its name is written.
func FoldHost(name string) string {
	host, path, found := strings.Cut(name, "/")
	if found {
		path = "/" + path
	}
	return strings.ToLower(host) + path
}

// maxReference caps a reference in a policy or payload, in bytes.
const maxReference = 1024

// reference is an image name taken apart for comparison: two that mean the
// same are equal.
type reference struct {
	repo   string // host/path; the names of Docker Hub become one
	tag    string // "" when there is none: nothing stands for "latest"
	digest string // "algo:hex" or ""
}

// parseReference reads a reference in docker grammar.
func parseReference(text string) (reference, error) {
	if len(text) > maxReference {
		return reference{}, fmt.Errorf("reference: %w", podvm.ErrTooLarge)
	}
	r, err := splitReference(text)
	if err != nil {
		return reference{}, fmt.Errorf("reference %q is malformed", podvm.Printable(text, 200))
	}
	return r, nil
}

func splitReference(text string) (r reference, err error) {
	text, digest, found := strings.Cut(text, "@")
	if found {
		if _, err := parseDigest(digest); err != nil {
			return r, err
		}
		r.digest = digest
	}
	repo := text
	if i := strings.LastIndexByte(text, ':'); i > strings.LastIndexByte(text, '/') {
		if _, err := name.NewTag(text, name.WeakValidation); err != nil {
			return r, err
		}
		repo, r.tag = text[:i], text[i+1:]
	}
	n, err := name.NewRepository(repo, name.WeakValidation)
	if err != nil {
		return r, err
	}
	host := strings.ToLower(n.RegistryStr())
	if host == name.DefaultRegistry || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	r.repo = host + "/" + n.RepositoryStr()
	return r, nil
}

// repository is r without tag and digest.
func (s reference) repository() reference { return reference{repo: s.repo} }

// String returns host/path[:tag][@digest].
func (s reference) String() string {
	text := s.repo
	if s.tag != "" {
		text += ":" + s.tag
	}
	if s.digest != "" {
		text += "@" + s.digest
	}
	return text
}
