package rpc

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

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

// Why a call failed, in one word, for callers that act on it: upstream's servers
// answer all failures with the same code.
const (
	Denied      = "denied"      // by whoever holds what was asked for
	NotFound    = "not-found"   // there
	Unreachable = "unreachable" // who was to be asked, for now
)

// reasonDetail comes before the word in a detail of the status.
const reasonDetail = "sealpod-reason="

// reasoned is an error with its reason beside it.
type reasoned struct {
	error
	reason string
}

func (e *reasoned) Unwrap() error { return e.error }

// Because attaches a reason to err, for Fail. It leaves err alone when one of
// them is empty.
func Because(err error, reason string) error {
	if err == nil || reason == "" {
		return err
	}
	return &reasoned{err, reason}
}

// Reason returns why a call failed, as Because or the peer has said, or "" when
// neither has.
func Reason(err error) string {
	if r := new(reasoned); errors.As(err, &r) {
		return r.reason
	}
	st, ok := status.FromError(err)
	if !ok || err == nil {
		return ""
	}
	for _, d := range st.Details() {
		if s, ok := d.(*wrapperspb.StringValue); ok {
			switch word, ok := strings.CutPrefix(s.GetValue(), reasonDetail); word {
			case Denied, NotFound, Unreachable:
				if ok {
					return word
				}
			}
		}
	}
	return ""
}

// Fail turns err into what may leave the process: a status with the given code
// and the text "PREFIX[: CAUSE] (request ID)". PREFIX is upstream's text for
// this failure, which callers match on; CAUSE is what podvm.Explain attached.
// Its reason is a detail of the status, which other programs do not see. The whole
// chain goes to the journal under the same id.
func Fail(ctx context.Context, code codes.Code, prefix string, err error) error {
	Log(ctx).Error("Request failed", "code", code.String(), "err", err)
	text := prefix
	if cause := podvm.Cause(err); cause != "" {
		text += ": " + cause
	}
	if c, ok := ctx.Value(callKey{}).(*call); ok {
		text += " (request " + c.id + ")"
	}
	st := status.New(code, text)
	if reason := Reason(err); reason != "" {
		if with, err := st.WithDetails(wrapperspb.String(reasonDetail + reason)); err == nil {
			st = with
		}
	}
	return st.Err()
}
