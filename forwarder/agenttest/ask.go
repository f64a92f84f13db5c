package agenttest

import (
	"context"
	"fmt"
	"strconv"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// What the metadata of a call may ask of the agent, whatever the method.
const (
	// AskID names the call, so that its deliveries can be counted.
	AskID = "agenttest-id"
	// AskReply is the length in bytes the reply's payload shall have. Beyond
	// 4 MiB, which is more than a frame may carry, it is sent all the same.
	AskReply = "agenttest-reply-bytes"
	// AskStatus is the number of the status to answer with instead of serving the
	// call. Its details are two strings: "detail" and the number.
	AskStatus = "agenttest-status"
	// AskCut ends the connection after as many bytes of the reply's frame, its
	// ten-byte header included.
	AskCut = "agenttest-cut-after"
	// AskOOM names a container that GetOOMEvent then tells of.
	AskOOM = "agenttest-oom"
)

// With returns ctx with metadata for one call: pairs of a key and a value.
func With(ctx context.Context, pairs ...string) context.Context {
	md, _ := ttrpc.GetMetadata(ctx)
	md = md.Clone()
	if md == nil {
		md = ttrpc.MD{}
	}
	for i := 0; i+1 < len(pairs); i += 2 {
		md.Append(pairs[i], pairs[i+1])
	}
	return ttrpc.WithMetadata(ctx, md)
}

// ask returns the first value of key, "" without one.
func ask(md ttrpc.MD, key string) string {
	if v, _ := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

// maxReply is the length of the longest payload that fits a frame: a response
// takes a tag and four bytes of length for it.
const maxReply = maxFrame - 5

// unary serves every unary call.
func (a *Agent) unary(ctx context.Context, unmarshal ttrpc.Unmarshaler, info *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	if !a.begin() {
		return nil, ttrpc.ErrClosed
	}
	defer a.calls.Done()
	name := info.FullMethod
	if asked, ok := ttrpc.GetMetadataValue(ctx, askedMethod); ok {
		name = asked
	}
	if err := a.deliver(ctx, name, func() ([]byte, error) {
		var raw Raw
		err := unmarshal(&raw)
		return raw.Bytes, err
	}); err != nil {
		return nil, err
	}
	md, _ := ttrpc.GetMetadata(ctx)
	if oom := ask(md, AskOOM); oom != "" {
		a.pod.oom <- oom
	}
	if v := ask(md, AskStatus); v != "" {
		return nil, asked(v)
	}
	if v := ask(md, AskReply); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", AskReply, err)
		}
		if n > maxReply && !a.cfg.Plain {
			n = 0 // the front sends it
		}
		return &Raw{make([]byte, n)}, nil
	}
	return method(ctx, unmarshal)
}

// asked returns the status with the number v, and details.
func asked(v string) error {
	code, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return fmt.Errorf("reading %s: %w", AskStatus, err)
	}
	st, err := status.New(codes.Code(code), "As asked.").WithDetails(wrapperspb.String("detail"), wrapperspb.String(v))
	if err != nil {
		return err
	}
	return st.Err()
}
