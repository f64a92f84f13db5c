package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

func TestStatusWithDetailsPasses(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	err := c.Call(t.Context(), service, "Fail", text("x"), &bytesValue{})
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition || st.Message() != "not so" || len(st.Details()) != 1 {
		t.Fatalf("got %v", st)
	}
	if d, ok := st.Details()[0].(*errdetails.ErrorInfo); !ok || d.Reason != "why" {
		t.Errorf("got %v", st.Details())
	}
}

func TestMetadataAndTimeoutPass(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	ctx := ttrpc.WithMetadata(t.Context(), ttrpc.MD{"key": []string{"value"}})
	var v bytesValue
	if err := c.Call(ctx, service, "Meta", text("x"), &v); err != nil || string(v.Value) != "value" {
		t.Errorf("metadata: got %q, %v", v.Value, err)
	}
	for _, timeout := range []time.Duration{0, time.Hour} {
		ctx := t.Context()
		if timeout > 0 {
			ctx = within(t, timeout)
		}
		var d durationpb.Duration
		if err := c.Call(ctx, service, "Left", text("x"), &d); err != nil {
			t.Fatal(err)
		}
		if left := d.AsDuration(); left > timeout || timeout-left > time.Minute {
			t.Errorf("of %s there are %s left", timeout, left)
		}
	}
}

func TestUnknownMethodsAreForTheAgentToRefuse(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	for _, name := range [][2]string{{service, "New"}, {"grpc.New", "Echo"}, {"", ""}} {
		err := c.Call(t.Context(), name[0], name[1], text("x"), &bytesValue{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%v: got %v", name, err)
		}
	}
}

func TestStreamsPass(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	s, err := c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, service, "Talk", nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		said := strings.Repeat(fmt.Sprint(i), i*i)
		var v bytesValue
		if err := errors.Join(s.SendMsg(text(said)), s.RecvMsg(&v)); err != nil || string(v.Value) != said {
			t.Fatalf("message %d: %d bytes, %v", i, len(v.Value), err)
		}
	}
	if err := s.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := s.RecvMsg(&bytesValue{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	s, err = c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingServer: true}, service, "Count", wrapperspb.UInt32(50))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(50) {
		var n wrapperspb.UInt32Value
		if err := s.RecvMsg(&n); err != nil || n.Value != i {
			t.Fatalf("got %d, %v, want %d", n.Value, err, i)
		}
	}
	if err := s.RecvMsg(&bytesValue{}); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

func TestCallsThatBlockDoNotStopOthers(t *testing.T) {
	path := socket(t)
	a := startAgent(t, path)
	c := client(t, Config{Dial: dialTo(path)})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() { _ = c.Call(ctx, service, "Block", text("x"), &bytesValue{}) })
	}
	for range 64 {
		<-a.entered
	}
	for range 100 {
		if _, err := echo(within(t, 10*time.Second), c, "x"); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}

// What the relay rewrites keeps what it does not know, and what it does not
// rewrite reaches the agent as it was, byte for byte.
func TestUnknownFieldsOfRequestsSurvive(t *testing.T) {
	body := protowire.AppendTag(nil, 77, protowire.BytesType)
	body = protowire.AppendString(body, "before")
	body = append(body, requestBody(t, "Echo", text("x"), time.Minute)...)
	body = protowire.AppendTag(body, 78, protowire.VarintType)
	body = protowire.AppendVarint(body, 5)
	for name, cfg := range map[string]Config{
		"passed": {},
		"changed": {Methods: map[string]Method{"/" + service + "/Echo": func(_ context.Context, p []byte) ([]byte, error) {
			return append(p[:len(p):len(p)], p...), nil
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			agents := make(chan rawEnd, 1)
			cfg.Dial = rawAgents(t, agents)
			host := rawEnd{t, serve(t, cfg, tcpPair).Conn}
			host.send(requestFrame(t, 1, "Size", text("x"))) // waits for the agent
			agent := <-agents
			agent.next()
			host.send(frame(3, typeRequest, 0x80, body))
			h, got := agent.next()
			if h.flags != 0x80 {
				t.Errorf("flags %#x", h.flags)
			}
			if name == "passed" && string(got) != string(body) {
				t.Errorf("%x became %x", body, got)
			}
			var was, is ttrpc.Request
			if err := errors.Join(proto.Unmarshal(body, &was), proto.Unmarshal(got, &is)); err != nil {
				t.Fatal(err)
			}
			if string(is.ProtoReflect().GetUnknown()) != string(was.ProtoReflect().GetUnknown()) {
				t.Errorf("unknown fields %x became %x", was.ProtoReflect().GetUnknown(), is.ProtoReflect().GetUnknown())
			}
			if name == "changed" && string(is.Payload) != string(was.Payload)+string(was.Payload) {
				t.Errorf("payload %x", is.Payload)
			}
		})
	}
}
