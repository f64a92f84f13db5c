package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sealpod/sealpod/podvm"
)

// The identity types of signedIdentity. Only the last two can be checked
// against a cosign payload, which names a repository without a tag.
const (
	idMatchRepository = "matchRepository"
	idExactRepository = "exactRepository"
)

var errIdentity = errors.New("identity mismatch")

// identity is a signedIdentity. The zero value accepts any, which is what
// upstream does for sigstoreSigned when the field is absent.
type identity struct {
	kind string
	repo string // exactRepository: the host/repo a payload must name
}

// parseIdentity reads a signedIdentity. A type that cosign payloads cannot
// satisfy is kept and denies at every use, as upstream does; one that
// policy.json does not know is an error.
func (p *Policy) parseIdentity(where string, raw []byte) (identity, error) {
	f, err := object(raw)
	if err != nil {
		return identity{}, err
	}
	kind, ok, err := f.text("type")
	if err != nil {
		return identity{}, err
	}
	if !ok {
		return identity{}, errors.New(`"type" is missing`)
	}
	id := identity{kind: kind}
	known := []string{"type"}
	switch kind {
	case idMatchRepository:
	case idExactRepository:
		known = append(known, "dockerRepository")
		repo, ok, err := f.text("dockerRepository")
		if err != nil {
			return identity{}, err
		}
		if !ok {
			return identity{}, errors.New(`"dockerRepository" is missing`)
		}
		if id.repo, err = normalRepository(repo); err != nil {
			return identity{}, err
		}
	default:
		if !slices.Contains([]string{"matchExact", "matchRepoDigestOrExact", "exactReference", "remapIdentity"}, kind) {
			return identity{}, fmt.Errorf("unknown type %q", podvm.Printable(kind, 64))
		}
		p.warn("%s: %s cannot be checked on a cosign signature, the rule rejects every image; use matchRepository or exactRepository", where, kind)
		return id, nil
	}
	p.warnUnknown(where, f, known...)
	return id, nil
}

// usable returns a denial when no cosign signature can satisfy the identity.
func (id identity) usable() error {
	switch id.kind {
	case "", idMatchRepository, idExactRepository:
		return nil
	}
	return denied("signedIdentity %s cannot be checked on a cosign signature, use %s or %s", id.kind, idMatchRepository, idExactRepository)
}

// check compares signed, the docker-reference of an authentic payload, with
// what the policy wants. A mismatch is errIdentity.
func (id identity) check(img Image, signed string) error {
	if id.kind == "" {
		return nil
	}
	got, err := normalRepository(signed)
	if err != nil {
		return fmt.Errorf("%w: %w", errIdentity, err)
	}
	want := id.repo
	if id.kind == idMatchRepository {
		if want, err = normalRepository(img.name()); err != nil {
			return fmt.Errorf("%w: %w", errIdentity, err)
		}
	}
	if got != want {
		return fmt.Errorf("%w: signed for %s, not for %s", errIdentity, got, want)
	}
	return nil
}

// normalRepository returns host/repo of a reference in docker grammar, without
// tag and digest; the names of Docker Hub become one.
func normalRepository(ref string) (string, error) {
	if len(ref) > 1024 {
		return "", fmt.Errorf("reference: %w", podvm.ErrTooLarge)
	}
	r, err := name.ParseReference(ref, name.WeakValidation)
	if err != nil {
		return "", fmt.Errorf("reference %q is malformed", podvm.Printable(ref, 200))
	}
	host := r.Context().RegistryStr()
	if host == name.DefaultRegistry || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	return host + "/" + r.Context().RepositoryStr(), nil
}
