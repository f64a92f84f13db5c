package kbs

import (
	"context"
	"time"
)

// Step is a part of a handshake that takes time.
type Step string

// The steps of a handshake in their order. Source: trustee
// kbs/docs/kbs_attestation_protocol.md at 78962cd4.
const (
	StepChallenge   Step = "challenge"   // the KBS is reached and answers with a nonce
	StepEvidence    Step = "evidence"    // the TEE and its devices make evidence
	StepAttestation Step = "attestation" // the KBS verifies it and answers with a token
)

// Steps lists them.
func Steps() []Step { return []Step{StepChallenge, StepEvidence, StepAttestation} }

// stepsKey is the key of what WithSteps adds.
type stepsKey struct{}

// WithSteps returns a context for Attest that has ended called after each step
// with how long it took, also when it failed; of a handshake that is repeated,
// after each step of each attempt.
func WithSteps(ctx context.Context, ended func(Step, time.Duration)) context.Context {
	return context.WithValue(ctx, stepsKey{}, ended)
}

// timed runs a step.
func timed(ctx context.Context, s Step, f func() error) error {
	start := time.Now()
	err := f()
	if ended, ok := ctx.Value(stepsKey{}).(func(Step, time.Duration)); ok {
		ended(s, time.Since(start))
	}
	return err
}
