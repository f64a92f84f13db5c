package kbs

import (
	"errors"
	"strings"

	"github.com/sealpod/sealpod/podvm/rpc"
)

// What callers tell apart. Every one of them is wrapped with a cause for
// podvm.Cause that names what to check.
var (
	// ErrURI says that a text is not a resource URI.
	ErrURI = errors.New("not a KBS resource URI")
	// ErrUnauthorized says that the KBS did not accept the evidence or the
	// token (401). With a token, a fresh one may help.
	ErrUnauthorized = errors.New("refused by the KBS")
	// ErrDenied says that a policy of the KBS denied access. Where the token
	// could be to blame (401) the error is ErrUnauthorized as well.
	ErrDenied = errors.New("denied by a KBS policy")
	// ErrNotFound says that the KBS knows the caller but not the plugin or the
	// resource: another token does not help.
	ErrNotFound = errors.New("not found at the KBS")
	// ErrUnreachable says that no KBS answered: no connection, no trusted TLS,
	// no answer in time, or an overloaded server or proxy (429, 5xx).
	ErrUnreachable = errors.New("KBS unreachable")
	// ErrProtocol says that the answer is not one of a KBS of this protocol.
	ErrProtocol = errors.New("KBS protocol violated")
	// ErrDecrypt says that an encrypted answer could not be decrypted, for
	// whatever reason: the text never tells which step did not succeed.
	ErrDecrypt = errors.New("decrypting the KBS response")
	// ErrToken says that bytes are not a token with its key.
	ErrToken = errors.New("not an attestation token with its key")
)

// textDenied is what a KBS says when its resource policy refuses; a relying
// party of ours has ": " and the reasons behind it.
// Source: trustee kbs/src/error.rs at 78962cd4.
const textDenied = "Access denied by policy"

// Reasons returns why the KBS denied access, in its words: printable and at most
// 1024 bytes, or "" when err is no denial or comes without a reason.
func Reasons(err error) string {
	var e *httpError
	if !errors.Is(err, ErrDenied) || !errors.As(err, &e) {
		return ""
	}
	reasons, ok := strings.CutPrefix(e.detail(), textDenied+": ")
	if !ok {
		return ""
	}
	return reasons
}

// Why returns in a word why err is an error, for rpc.Because, or "" for errors
// that have no such word.
func Why(err error) string {
	switch {
	case errors.Is(err, ErrNotFound):
		return rpc.NotFound
	case errors.Is(err, ErrDenied), errors.Is(err, ErrUnauthorized):
		return rpc.Denied
	case errors.Is(err, ErrUnreachable):
		return rpc.Unreachable
	}
	return rpc.Reason(err)
}
