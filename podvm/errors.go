package podvm

import (
	"errors"
	"fmt"
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

// Error gives the chain with the sentence before it, once.
func (e *explained) Error() string {
	chain := e.err.Error()
	if strings.Contains(chain, e.cause) {
		return chain
	}
	return e.cause + ": " + chain
}

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

// maxCause caps what Cause returns, in bytes.
const maxCause = 2048

// Cause returns the outermost sentence attached with Explain, made printable
// line by line and cut to 2048 bytes, or "" when the chain carries none.
func Cause(err error) string {
	var e *explained
	if !errors.As(err, &e) {
		return ""
	}
	lines := strings.Split(e.cause, "\n")
	for i, l := range lines {
		lines[i] = Printable(l, maxCause)
	}
	text := strings.Join(lines, "\n")
	if len(text) > maxCause {
		text = strings.ToValidUTF8(text[:maxCause], "") + "…"
	}
	return text
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

// SizeText is n bytes for people, in units of 1000: "87 B", "1.5 MB".
func SizeText(n int64) string {
	f, unit := float64(n), "B"
	for _, unit = range []string{"B", "kB", "MB", "GB", "TB"} {
		if f < 1000 || unit == "TB" {
			break
		}
		f /= 1000
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
