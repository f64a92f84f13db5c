package attester

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/sealpod/sealpod/attester/eventlog"
)

// Attester makes the evidence of one TEE. It is safe for concurrent use.
type Attester interface {
	// TEE returns the wire name, as in "tdx".
	TEE() string
	// Evidence returns the TEE's evidence over reportData as compact JSON. How
	// long reportData may be, and how it is padded, depends on the TEE.
	Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error)
}

// InitDataBinder is an Attester that can tie the digest of the init data to its
// evidence, or check that the host did at launch.
type InitDataBinder interface {
	BindInitData(ctx context.Context, digest []byte) error
}

// Measurer is an Attester whose TEE has measurement registers for runtime
// events.
type Measurer interface {
	// Registers returns them, nil when this kernel cannot extend them.
	Registers() eventlog.Registers
}

// ErrUnsupported says that the TEE cannot do what was asked.
var ErrUnsupported = errors.New("not supported by this TEE")

// Set is every TEE of a guest. It implements kbs.Evidencer and does not change
// after detection.
type Set struct {
	Primary Attester
	Devices []Attester // each with a name of its own
}

// TEE returns the wire name of the primary TEE.
func (s *Set) TEE() string { return s.Primary.TEE() }

// DeviceTEEs returns the wire names of the devices, sorted.
func (s *Set) DeviceTEEs() []string {
	names := make([]string, 0, len(s.Devices))
	for _, d := range s.Devices {
		names = append(names, d.TEE())
	}
	slices.Sort(names)
	return names
}

// Evidence returns the evidence of the primary TEE.
func (s *Set) Evidence(ctx context.Context, reportData []byte) (json.RawMessage, error) {
	out, err := s.Primary.Evidence(ctx, reportData)
	if err != nil {
		return nil, fmt.Errorf("getting %s evidence: %w", s.TEE(), err)
	}
	return out, nil
}

// AdditionalEvidence returns the text of a JSON object {TEE name: evidence} of
// all devices, "" when there are none. One that fails fails the whole.
func (s *Set) AdditionalEvidence(ctx context.Context, reportData []byte) (string, error) {
	if len(s.Devices) == 0 {
		return "", nil
	}
	all := make(map[string]json.RawMessage, len(s.Devices))
	for _, d := range s.Devices {
		out, err := d.Evidence(ctx, reportData)
		if err != nil {
			return "", fmt.Errorf("getting %s evidence: %w", d.TEE(), err)
		}
		all[d.TEE()] = out
	}
	text, err := json.Marshal(all)
	if err != nil {
		return "", fmt.Errorf("encoding device evidence: %w", err)
	}
	return string(text), nil
}

// BindInitData binds digest with the primary TEE. Errors: ErrUnsupported when
// the TEE has nothing to bind it to.
func (s *Set) BindInitData(ctx context.Context, digest []byte) error {
	b, ok := s.Primary.(InitDataBinder)
	if !ok {
		return fmt.Errorf("binding init data: %w: %s", ErrUnsupported, s.TEE())
	}
	if err := b.BindInitData(ctx, digest); err != nil {
		return fmt.Errorf("binding init data to %s: %w", s.TEE(), err)
	}
	return nil
}
