package agenttest

import (
	"context"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/runtime/protoiface"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Raw is a message that is its own encoding, so that any bytes, protobuf or not,
// can be a payload of ttrpc's client and server.
type Raw struct{ Bytes []byte }

// RawCall calls a method with req as the payload and returns the reply's payload.
func RawCall(ctx context.Context, c *ttrpc.Client, service, method string, req []byte) ([]byte, error) {
	var reply Raw
	err := c.Call(ctx, service, method, &Raw{req}, &reply)
	return reply.Bytes, err
}

// Reset empties r.
func (r *Raw) Reset() { r.Bytes = nil }

// ProtoReflect makes r a message of type google.protobuf.Empty with an encoding
// of its own.
func (r *Raw) ProtoReflect() protoreflect.Message {
	return rawMessage{new(emptypb.Empty).ProtoReflect(), r}
}

type rawMessage struct {
	protoreflect.Message
	raw *Raw
}

func (m rawMessage) Interface() protoreflect.ProtoMessage { return m.raw }

func (m rawMessage) ProtoMethods() *protoiface.Methods {
	return &protoiface.Methods{
		Marshal: func(in protoiface.MarshalInput) (protoiface.MarshalOutput, error) {
			return protoiface.MarshalOutput{Buf: append(in.Buf, m.raw.Bytes...)}, nil
		},
		Unmarshal: func(in protoiface.UnmarshalInput) (protoiface.UnmarshalOutput, error) {
			m.raw.Bytes = append([]byte{}, in.Buf...)
			return protoiface.UnmarshalOutput{Flags: protoiface.UnmarshalInitialized}, nil
		},
		CheckInitialized: func(protoiface.CheckInitializedInput) (out protoiface.CheckInitializedOutput, err error) {
			return out, nil
		},
	}
}
