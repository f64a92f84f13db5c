package policy

import (
	"errors"
	"fmt"

	"github.com/sealpod/sealpod/podvm"
)

// denial is a reason to refuse an image that may be shown outside. cause, if
// any, stays in the chain for the journal.
type denial struct {
	reason string
	cause  error
}

func (d *denial) Error() string {
	if d.cause == nil {
		return d.reason
	}
	return d.reason + ": " + d.cause.Error()
}

func (d *denial) Unwrap() error { return d.cause }

func denied(format string, args ...any) error { return because(nil, format, args...) }

func because(cause error, format string, args ...any) error {
	return &denial{reason: fmt.Sprintf(format, args...), cause: cause}
}

// reason is the part of err that may leave the process.
func reason(err error) string {
	var d *denial
	if !errors.As(err, &d) {
		return "the check could not be completed"
	}
	if c := podvm.Cause(err); c != "" {
		return d.reason + ": " + c
	}
	return d.reason
}

// stage is how far a signature got. The one that got furthest says best why
// an image was refused.
type stage int

const (
	stageNone      stage = iota
	stageForm            // not even looked at
	stageSignature       // no key of the rule made it
	stageKey             // a key of the rule is missing, so nobody knows
	stageClaim           // authentic, but not for this image
	stageIdentity        // authentic and for this image, under another name
)

// verdict collects why no signature was good enough.
type verdict struct {
	step   *Step
	best   stage
	reason string
	causes []error // one per stage reached, bounded
}

// refuse records why the signature at sig was not accepted with key.
func (v *verdict) refuse(s stage, sig, key string, cause error, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	v.step.attempt(Attempt{Signature: sig, Key: key, Reason: text})
	if s <= v.best {
		return
	}
	v.best, v.reason = s, text
	if cause != nil {
		v.causes = append(v.causes, cause)
	}
}

// keyMissing records that a key could not be had.
func (v *verdict) keyMissing(key string, cause error) {
	v.refuse(stageKey, "", key, cause, "the public key %s is not available", key)
}

// denial returns the best reason, or none if no signature was there at all.
func (v *verdict) denial(none string) error {
	if v.best == stageNone {
		return denied("%s", none)
	}
	return because(errors.Join(v.causes...), "%s", v.reason)
}
