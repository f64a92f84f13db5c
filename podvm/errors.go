package podvm

import (
	"errors"
	"strings"
	"unicode"
)

// ErrTooLarge says that outside bytes exceed the cap set for them.
var ErrTooLarge = errors.New("too large")

// explained carries a sentence that may leave the guest beside an error chain
// that may not.
type explained struct {
	err   error
	cause string
}

func (e *explained) Error() string { return e.cause + ": " + e.err.Error() }
func (e *explained) Unwrap() error { return e.err }

// Explain attaches to err a short sentence that is safe to show outside the
// process: it names no secret, no key material and no bytes chosen by a peer.
// The full chain stays in err for the journal. A nil err stays nil.
func Explain(err error, cause string) error {
	if err == nil {
		return nil
	}
	return &explained{err: err, cause: cause}
}

// Cause returns the outermost sentence attached with Explain, made printable
// and cut to 1024 bytes, or "" when the chain carries none.
func Cause(err error) string {
	var e *explained
	if !errors.As(err, &e) {
		return ""
	}
	return Printable(e.cause, 1024)
}

// Printable returns s without control characters and cut to limit bytes. Use
// it on any text of a peer before it enters a log line or an error.
func Printable(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
}
