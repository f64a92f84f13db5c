package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"log/slog"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/podvm"
)

type callKey struct{}

// call is what a handler's context carries about its request.
type call struct {
	id  string
	log *slog.Logger
}

// newRequestID returns 8 hex digits: enough to find one call in a journal.
func newRequestID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// Log returns the logger of the request ctx belongs to, which carries its id,
// or the default logger outside a request.
func Log(ctx context.Context) *slog.Logger {
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		return c.log
	}
	return slog.Default()
}

// Fail turns err into what may leave the process: a status with the given code
// and the text "PREFIX[: CAUSE] (request ID)". PREFIX is upstream's text for
// this failure, which callers match on; CAUSE is what podvm.Explain attached.
// The whole chain goes to the journal under the same id.
func Fail(ctx context.Context, code codes.Code, prefix string, err error) error {
	Log(ctx).Error("Request failed", "code", code.String(), "err", err)
	text := prefix
	if cause := podvm.Cause(err); cause != "" {
		text += ": " + cause
	}
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		text += " (request " + c.id + ")"
	}
	return status.Error(code, text)
}
