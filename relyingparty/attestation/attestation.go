// Package attestation is the attestation service of the relying party: it
// turns the evidence of a guest into a signed attestation result.
//
//	evidence -> verifier -> claims -> attestation policy -> appraisal -> token
//
// Place in the data path: POST attest calls Attest once the session is found.
//
// Trust: everything in an attestation is hostile. The verifier binds the
// evidence to the handshake (nonce, TEE key, further evidence); only what it
// says reaches the policy as fact. Text that the guest sent in the clear stands
// beside it in the token and is bound through the digests in the evidence.
//
// Source: trustee attestation-service/src and kbs/src/attestation/coco at
// 78962cd4.
package attestation

import (
	"bytes"
	"context"
	"crypto"
	_ "crypto/sha512" // SHA-384 of report data
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/policy"
	"github.com/sealpod/sealpod/relyingparty/token"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// What callers tell apart, beside verifier.ErrEvidence and the errors of
// packages policy and token.
var (
	// ErrTEE says that there is no verifier for a kind of TEE.
	ErrTEE = errors.New("no verifier for this TEE")
	// ErrNonce says that the attestation answers another challenge.
	ErrNonce = errors.New("the nonce is not that of the session")
	// ErrAttestation says that the attestation cannot be read.
	ErrAttestation = errors.New("malformed attestation")
)

const (
	// policyID is the family of policies in use; "_" and the class follow.
	policyID = "default"
	// maxDevices bounds the additional evidence of one guest.
	maxDevices = 16
)

// Service verifies evidence and issues tokens. It may be used by any number of
// goroutines.
type Service struct {
	verifiers map[string]verifier.Verifier
	policies  *policy.Set
	issuer    *token.Issuer
}

// New returns a service with those verifiers.
func New(verifiers []verifier.Verifier, policies *policy.Set, issuer *token.Issuer) *Service {
	s := &Service{verifiers: map[string]verifier.Verifier{}, policies: policies, issuer: issuer}
	for _, v := range verifiers {
		s.verifiers[v.TEE()] = v
	}
	return s
}

// TEEs returns the kinds of TEE that can be verified, in order.
func (s *Service) TEEs() []string { return slices.Sorted(maps.Keys(s.verifiers)) }

// CheckTEE is ErrTEE for a kind of TEE that cannot be verified.
func (s *Service) CheckTEE(tee string) error {
	if s.verifiers[tee] == nil {
		return fmt.Errorf("%w: %q, have %v", ErrTEE, podvm.Printable(tee, 64), s.TEEs())
	}
	return nil
}

// Result is a finished attestation.
type Result struct {
	// Token is the signed JWT.
	Token string
	// Status has the overall tier of each appraisal, by name, as in
	// "cpu0": "affirming".
	Status map[string]string
	// Unmet says in words what is not affirmed and why; see Unmet.
	Unmet string
}

// Attest verifies the primary evidence of the kind tee and all additional
// evidence against the nonce of the session, appraises each and signs one
// token over them. All must verify; what the policy thinks of them is in the
// token and does not refuse it.
func (s *Service) Attest(ctx context.Context, tee, nonce string, a kbs.Attestation) (Result, error) {
	if err := s.CheckTEE(tee); err != nil {
		return Result{}, err
	}
	if a.RuntimeData.Nonce != nonce {
		return Result{}, ErrNonce
	}
	if err := a.RuntimeData.TEEPubKey.Validate(); err != nil {
		return Result{}, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	parts, err := s.parts(tee, a)
	if err != nil {
		return Result{}, err
	}
	submods, appraisals, counts := map[string]any{}, map[string]policy.Appraisal{}, map[string]int{}
	for i, p := range parts {
		claims, err := s.verifiers[p.tee].Verify(ctx, p.evidence, p.want)
		if err != nil {
			return Result{}, fmt.Errorf("verifying %s evidence: %w", p.tee, err)
		}
		if i == 0 && (len(claims) == 0 || claims[0].Class != verifier.CPU) {
			return Result{}, fmt.Errorf("verifying %s evidence: %w: the primary evidence must be of a CPU", p.tee, verifier.ErrEvidence)
		}
		for _, c := range claims {
			name := fmt.Sprintf("%s%d", c.Class, counts[c.Class])
			counts[c.Class]++
			if submods[name], appraisals[name], err = s.appraise(ctx, p, c); err != nil {
				return Result{}, fmt.Errorf("appraising %s evidence as %s: %w", p.tee, name, err)
			}
		}
	}
	result := Result{Status: map[string]string{}, Unmet: inWords(appraisals)}
	for name, a := range appraisals {
		result.Status[name] = a.Status
	}
	result.Token, err = s.issuer.Issue(submods)
	return result, err
}

// part is one piece of evidence with what it must be bound to.
type part struct {
	tee      string
	evidence json.RawMessage
	want     verifier.Expected
	runtime  map[string]any
	initData map[string]any // nil when the guest sent none, or for devices
}

// parts lists the primary evidence and then the additional ones by name.
func (s *Service) parts(tee string, a kbs.Attestation) ([]part, error) {
	primary := part{tee: tee, evidence: a.Evidence.Primary, runtime: map[string]any{
		"nonce": a.RuntimeData.Nonce, "tee-pubkey": a.RuntimeData.TEEPubKey, "additional-evidence": a.Evidence.Additional,
	}}
	var err error
	if primary.want.ReportData, err = kbs.ReportDataWithDevices(crypto.SHA384, a.RuntimeData, a.Evidence.Additional); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	if a.InitData != nil {
		if primary.want.InitData, primary.initData, err = readInitData(*a.InitData); err != nil {
			return nil, err
		}
	}
	devices, err := readDevices(a.Evidence.Additional)
	if err != nil {
		return nil, err
	}
	digest, err := kbs.ReportData(crypto.SHA384, a.RuntimeData)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttestation, err)
	}
	runtime := map[string]any{"nonce": a.RuntimeData.Nonce, "tee-pubkey": a.RuntimeData.TEEPubKey}
	parts := []part{primary}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		if err := s.CheckTEE(name); err != nil {
			return nil, fmt.Errorf("additional evidence: %w", err)
		}
		parts = append(parts, part{
			tee: name, evidence: devices[name], want: verifier.Expected{ReportData: digest}, runtime: runtime,
		})
	}
	return parts, nil
}

// readDevices reads the additional evidence: "" or a JSON object by TEE name.
func readDevices(text string) (map[string]json.RawMessage, error) {
	if text == "" {
		return nil, nil
	}
	var devices map[string]json.RawMessage
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	if err := d.Decode(&devices); err != nil {
		return nil, fmt.Errorf("%w: additional evidence: %w", ErrAttestation, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: data after the additional evidence", ErrAttestation)
	}
	if len(devices) > maxDevices {
		return nil, fmt.Errorf("%w: %d pieces of additional evidence, want at most %d", ErrAttestation, len(devices), maxDevices)
	}
	return devices, nil
}

// appraise returns the submod of the token for one verified TEE, and what it
// was made of.
func (s *Service) appraise(ctx context.Context, p part, c verifier.Claims) (map[string]any, policy.Appraisal, error) {
	input, err := annotated(p, c.Values)
	if err != nil {
		return nil, policy.Appraisal{}, err
	}
	pol, err := s.policies.Attestation(ctx, policyID+"_"+c.Class)
	if err != nil {
		return nil, policy.Appraisal{}, err
	}
	a, err := pol.Appraise(ctx, input)
	if err != nil {
		return nil, policy.Appraisal{}, err
	}
	submod := maps.Clone(a.Extensions)
	submod["ear.status"] = a.Status
	submod["ear.trustworthiness-vector"] = a.Vector
	submod["ear.appraisal-policy-id"] = policyID
	submod["ear.veraison.annotated-evidence"] = input
	if len(a.Reasons) > 0 {
		submod[policy.ReasonsExtension] = a.Reasons
	}
	return submod, a, nil
}

// annotated is the input of the policy and, unchanged, the annotated evidence
// of the token: the claims under the name of the TEE, and beside them what the
// digests in the evidence stand for. It is plain JSON: encoded once, so that
// the policy sees what the token says.
func annotated(p part, claims map[string]any) (map[string]any, error) {
	own := maps.Clone(claims)
	doc := map[string]any{p.tee: own}
	if v, ok := own["report_data"]; ok {
		doc["report_data"], doc["runtime_data_claims"] = v, p.runtime
		delete(own, "report_data")
	}
	if v, ok := own["init_data"]; ok {
		doc["init_data"], doc["init_data_claims"] = v, p.initData
		delete(own, "init_data")
	}
	return plain(doc)
}

// plain returns v as encoding/json reads it back, with exact numbers. What no
// token has room for is token.ErrTooLarge before a policy spends memory on it.
func plain(v map[string]any) (map[string]any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encoding claims: %w", err)
	}
	if n := base64.RawURLEncoding.EncodedLen(len(raw)); n > token.MaxBytes {
		return nil, fmt.Errorf("%w: claims of %d bytes in it, want at most %d", token.ErrTooLarge, n, token.MaxBytes)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var out map[string]any
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("encoding claims: %w", err)
	}
	return out, nil
}
