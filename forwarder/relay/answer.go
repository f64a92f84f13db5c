package relay

import (
	"context"
	"errors"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/podvm"
)

// Answers of the relay itself. The texts of the first three are those of Go's
// ttrpc server (server.go at v1.2.10), the last one is cloud-api-adaptor's
// (pkg/forwarder at fbdde756).
var (
	errEven      = status.Error(codes.InvalidArgument, "StreamID must be odd for client initiated streams")
	errReused    = status.Error(codes.InvalidArgument, "StreamID cannot be re-used and must increment")
	errNotActive = status.Error(codes.InvalidArgument, "StreamID is no longer active")
	errTooMany   = status.Error(codes.ResourceExhausted, "too many calls at once")
	errHeld      = status.Error(codes.ResourceExhausted, "too many bytes wait for the agent")
	errLost      = status.Error(codes.Unavailable, "agent connection is lost")
	errAbsent    = status.Error(codes.Unavailable, notEstablished)
	errLate      = status.Error(codes.DeadlineExceeded, notEstablished)
	errPanic     = status.Error(codes.Internal, "internal fault")
)

const notEstablished = "agent connection is not established"

// appendAnswer appends the response frame that ends a stream with err.
func appendAnswer(p []byte, stream uint32, err error) []byte {
	body, merr := proto.Marshal(&ttrpc.Response{Status: toStatus(err).Proto()})
	if merr != nil || len(body) > maxBody {
		// Details that cannot be written, or text that is not UTF-8.
		body, _ = proto.Marshal(&ttrpc.Response{Status: status.New(toStatus(err).Code(), "").Proto()})
	}
	p = appendHeader(p, header{length: uint32(len(body)), stream: stream, kind: typeResponse})
	return append(p, body...)
}

// toStatus turns an error into what may leave the process: its gRPC status if
// it has one, else a code for the ends of contexts, else Unknown with the cause
// that was attached to it.
func toStatus(err error) *status.Status {
	var own interface{ GRPCStatus() *status.Status }
	if errors.As(err, &own) && own.GRPCStatus().Code() != codes.OK {
		return own.GRPCStatus() // without the chain around it
	}
	var large *tooLargeError
	code, text := codes.Unknown, podvm.Cause(err)
	switch {
	case errors.As(err, &large):
		code, text = codes.ResourceExhausted, large.Error()
	case errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	if text == "" {
		text = "the forwarder cannot change this request"
	}
	return status.New(code, text)
}
