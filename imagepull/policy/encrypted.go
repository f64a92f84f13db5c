package policy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// sealpodEncrypted is a requirement of our own: all layers of the image, or at
// least a number of them, are encrypted, so that whoever holds the registry
// cannot put plain layers in the place of encrypted ones. Upstream and
// containers/image refuse a policy that has it, as they do any type they do
// not know; they never ignore it. A layer that is there several times counts once.
//
//	{"type": "sealpodEncrypted"}
//	{"type": "sealpodEncrypted", "minimum": 2}
//
// It says nothing about who made the image: encrypted layers can be recombined,
// the configuration is plain, and where layer keys are wrapped with a public
// key anybody can encrypt. A signature beside it does.
type sealpodEncrypted struct {
	minimum int // 0: all
}

func (*sealpodEncrypted) kind() string { return typeEncrypted }

// parseEncrypted is strict: an owner who writes something this build does not
// know must learn of it.
func parseEncrypted(f fields) (requirement, error) {
	if err := f.exactly("type", "minimum"); err != nil {
		return nil, fmt.Errorf("sealpodEncrypted: %w", err)
	}
	req := &sealpodEncrypted{}
	if raw, ok := f["minimum"]; ok {
		if err := json.Unmarshal(raw, &req.minimum); err != nil || req.minimum < 1 {
			return nil, errors.New(`sealpodEncrypted: "minimum" is not a number of layers, 1 or more`)
		}
	}
	return req, nil
}

func (r *sealpodEncrypted) allows(_ context.Context, img Image, _ Sources, _ *Step) error {
	encrypted, plain := map[string]bool{}, ""
	for _, l := range img.Layers {
		if l.Encrypted {
			encrypted[l.Digest] = true
		} else if plain == "" {
			plain = l.Digest
		}
	}
	switch {
	case r.minimum > 0 && len(encrypted) < r.minimum:
		return denied("%d of %d layers are encrypted, the rule wants at least %d", len(encrypted), len(img.Layers), r.minimum)
	case r.minimum == 0 && len(img.Layers) == 0:
		return denied("the image has no layers, so none is encrypted")
	case r.minimum == 0 && plain != "":
		return denied("layer %s is not encrypted", podvm.Printable(plain, 160))
	}
	return nil
}
