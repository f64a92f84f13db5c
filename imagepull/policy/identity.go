package policy

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// The identity types of signedIdentity.
// Source: containers/image docs/containers-policy.json.5.md, and
// guest-components image-rs src/signature/policy/ref_match.rs at 8246e5e.
const (
	idMatchExact             = "matchExact"
	idMatchRepoDigestOrExact = "matchRepoDigestOrExact"
	idMatchRepository        = "matchRepository"
	idExactReference         = "exactReference"
	idExactRepository        = "exactRepository"
	idRemap                  = "remapIdentity"
)

var errIdentity = errors.New("identity mismatch")

// identity is a signedIdentity: which names a signature may have been made
// for. The zero value accepts any, which is what upstream does for
// sigstoreSigned when the field is absent.
type identity struct {
	kind                 string
	ref                  reference // exactReference; exactRepository uses its repo alone
	prefix, signedPrefix string    // remapIdentity
}

func (p *Policy) parseIdentity(where string, raw []byte) (identity, error) {
	f, err := object(raw)
	if err != nil {
		return identity{}, err
	}
	id := identity{}
	if id.kind, err = f.need("type"); err != nil {
		return identity{}, err
	}
	known := []string{"type"}
	switch id.kind {
	case idMatchExact, idMatchRepoDigestOrExact, idMatchRepository:
	case idExactReference:
		known = append(known, "dockerReference")
		err = id.parseReference(f, "dockerReference")
		if err == nil && id.ref.tag == "" && id.ref.digest == "" {
			err = errors.New(`"dockerReference" has neither a tag nor a digest`)
		}
	case idExactRepository:
		known = append(known, "dockerRepository")
		err = id.parseReference(f, "dockerRepository")
	case idRemap:
		known = append(known, "prefix", "signedPrefix")
		if id.prefix, err = parsePrefix(f, "prefix"); err == nil {
			id.signedPrefix, err = parsePrefix(f, "signedPrefix")
		}
	default:
		return identity{}, fmt.Errorf("unknown type %q", podvm.Printable(id.kind, 64))
	}
	if err != nil {
		return identity{}, err
	}
	p.warnUnknown(where, f, known...)
	return id, nil
}

func (id *identity) parseReference(f fields, name string) error {
	text, err := f.need(name)
	if err != nil {
		return err
	}
	id.ref, err = parseReference(text)
	return err
}

// prefixRE is a host, or a host with the first directories of a path.
var prefixRE = regexp.MustCompile(`^[A-Za-z0-9.\[\]:-]+(?:/[a-z0-9._-]+)*$`)

func parsePrefix(f fields, name string) (string, error) {
	text, err := f.need(name)
	if err == nil && (len(text) > maxReference || !prefixRE.MatchString(text)) {
		err = fmt.Errorf("%q is no registry host or repository: %q", name, podvm.Printable(text, 200))
	}
	return FoldHost(text), err
}

// onCosign returns a denial when no cosign payload can satisfy the identity:
// such a payload names a repository without a tag.
func (id identity) onCosign() error {
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
	got, err := parseReference(signed)
	if err != nil {
		return fmt.Errorf("%w: %w", errIdentity, err)
	}
	name := FoldHost(img.String())
	if id.kind == idRemap {
		name = id.remap(name)
	}
	want, err := parseReference(name)
	if err != nil {
		return fmt.Errorf("%w: %w", errIdentity, err)
	}
	var ok bool
	switch id.kind {
	case idMatchExact:
		ok = got == want && (want.tag != "" || want.digest != "")
	case idMatchRepoDigestOrExact, idRemap:
		ok = got.exactOrByDigest(want)
	case idMatchRepository:
		got, want = got.repository(), want.repository()
		ok = got == want
	case idExactReference:
		want = id.ref
		ok = got == want
	case idExactRepository:
		got, want = got.repository(), id.ref.repository()
		ok = got == want
	}
	if !ok {
		return fmt.Errorf("%w: signed for %s, not for %s", errIdentity, got, want)
	}
	return nil
}

// exactOrByDigest says whether a signature for s vouches for an image asked
// for as want: by tag it must name that very tag; by digest alone any tag of
// the repository will do, since the digest is compared anyway.
func (s reference) exactOrByDigest(want reference) bool {
	switch {
	case s.repo != want.repo, s.tag == "" && s.digest == "":
		return false
	case want.tag != "":
		return s.tag == want.tag && (s.digest == "" || s.digest == want.digest)
	}
	return want.digest != ""
}

// remap replaces prefix by signedPrefix in name if that leads to a whole
// component of it; upstream replaces anywhere in the text.
func (id identity) remap(name string) string {
	rest, ok := strings.CutPrefix(name, id.prefix)
	if !ok {
		return name
	}
	switch {
	case rest == "", rest[0] == '/', rest[0] == '@', rest[0] == ':' && strings.Contains(id.prefix, "/"):
		return id.signedPrefix + rest
	}
	return name
}
