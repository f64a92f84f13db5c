package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sealpod/sealpod/podvm"
)

// The requirement types of policy.json, and one of our own.
const (
	typeAccept    = "insecureAcceptAnything"
	typeReject    = "reject"
	typeSigstore  = "sigstoreSigned"
	typeGPG       = "signedBy"
	typeEncrypted = "sealpodEncrypted"
)

// maxRequirements caps one list of requirements.
const maxRequirements = 64

// requirement is one entry of a requirement list. allows returns nil when the
// entry is satisfied, and notes in step what it tried. Any other outcome is a
// *denial or an error of a source.
type requirement interface {
	kind() string
	allows(ctx context.Context, img Image, src Sources, step *Step) error
}

type acceptAnything struct{}

func (acceptAnything) kind() string { return typeAccept }
func (acceptAnything) allows(context.Context, Image, Sources, *Step) error {
	return nil
}

type rejectAll struct{}

func (rejectAll) kind() string { return typeReject }
func (rejectAll) allows(context.Context, Image, Sources, *Step) error {
	return denied("the rule rejects every image")
}

func (p *Policy) parseRequirements(where string, raw []byte) ([]requirement, error) {
	entries, err := list(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if len(entries) > maxRequirements {
		return nil, fmt.Errorf("%s: %w: %d requirements", where, podvm.ErrTooLarge, len(entries))
	}
	var out []requirement
	for i, e := range entries {
		r, err := p.parseRequirement(fmt.Sprintf("%s[%d]", where, i), e)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", where, i, err)
		}
		out = append(out, r)
	}
	if len(out) == 1 && out[0].kind() == typeEncrypted {
		p.warn("%s: sealpodEncrypted alone does not say who composed the image; add sigstoreSigned or signedBy", where)
	}
	return out, nil
}

func (p *Policy) parseRequirement(where string, raw []byte) (requirement, error) {
	f, kind, err := typed(raw)
	if err != nil {
		return nil, err
	}
	switch kind {
	case typeAccept:
		p.warnUnknown(where, f, "type")
		return acceptAnything{}, nil
	case typeReject:
		p.warnUnknown(where, f, "type")
		return rejectAll{}, nil
	case typeSigstore:
		return p.parseSigstore(where, f)
	case typeGPG:
		return p.parseSignedBy(where, f)
	default:
		return parseEncrypted(f)
	}
}

// typed reads a requirement as far as its type, which must be a known one.
func typed(raw []byte) (fields, string, error) {
	f, err := object(raw)
	if err != nil {
		return nil, "", err
	}
	kind, ok, err := f.text("type")
	switch {
	case err != nil:
		return nil, "", err
	case !ok:
		return nil, "", errors.New(`"type" is missing`)
	case !slices.Contains([]string{typeAccept, typeReject, typeSigstore, typeGPG, typeEncrypted}, kind):
		return nil, "", fmt.Errorf("unknown type %q", podvm.Printable(kind, 64))
	}
	return f, kind, nil
}

// checkTypes checks a list of a transport that is never consulted: as
// upstream does, an unknown type anywhere invalidates the whole policy.
func checkTypes(raw json.RawMessage) error {
	entries, err := list(raw)
	if err != nil {
		return err
	}
	for i, e := range entries {
		if _, _, err := typed(e); err != nil {
			return fmt.Errorf("[%d]: %w", i, err)
		}
	}
	return nil
}
