// Package verifier is what the relying party asks of each kind of TEE: check
// one piece of evidence and say what it claims. The kinds are sub-packages.
//
// Place in the data path: package attestation calls Verify with what the guest
// sent and turns the claims into the input of an attestation policy.
//
// Trust: evidence is hostile until Verify returned without error. A verifier
// says what hardware vouches for; whether that is good enough is the policy's.
package verifier

import (
	"context"
	"encoding/json"
	"errors"
)

// ErrEvidence says that evidence is malformed, not genuine, or not for the
// expected report data or init data.
var ErrEvidence = errors.New("evidence not accepted")

// The classes of TEEs with a default policy. The class picks the policy
// (default_CLASS) and names the appraisal in the token (cpu0, gpu0).
// Source: trustee deps/verifier/src/lib.rs at 78962cd4.
const (
	CPU = "cpu"
	GPU = "gpu"
)

// Expected is what evidence must be bound to.
type Expected struct {
	// ReportData is the digest of the handshake, 48 bytes (SHA-384). A field of
	// the hardware that is longer has it at its start and zeros behind.
	ReportData []byte
	// InitData is the digest of the init data the guest sent along; nil when it
	// sent none, and then it is not compared.
	InitData []byte
}

// Claims is what verified evidence says about one TEE.
type Claims struct {
	// Class is CPU, GPU or another class.
	Class string
	// Values are JSON values: strings, bools, json.Number or integers, and
	// lists and maps of them. The members "report_data" and "init_data", both
	// strings, are those of the evidence in the encoding of the TEE.
	Values map[string]any
}

// Verifier checks evidence of one kind of TEE. It must be usable by any number
// of goroutines.
type Verifier interface {
	// TEE is the wire name of the kind, as in "tdx".
	TEE() string
	// Verify checks the evidence and returns its claims, one for each TEE it
	// covers and at least one. Evidence that does not hold is ErrEvidence; the
	// text names the check and goes to the guest, so it says nothing else of the
	// relying party. The text of any other error goes to the log only.
	Verify(ctx context.Context, evidence json.RawMessage, want Expected) ([]Claims, error)
}
