package rpc

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestReasonPassesFromServerToServer: a word attached at one end is read at the
// other, through what is wrapped around it, and goes on from there.
func TestReasonPassesFromServerToServer(t *testing.T) {
	cause := fmt.Errorf("asking: %w", Because(io.EOF, Denied))
	if Reason(cause) != Denied || !errors.Is(cause, io.EOF) {
		t.Fatal(Reason(cause))
	}
	sent := Fail(t.Context(), codes.Internal, "text", cause)
	if st := status.Convert(sent); st.Message() != "text" || len(st.Details()) != 1 {
		t.Errorf("%v %v", st.Message(), st.Details())
	}
	again := Fail(t.Context(), codes.Internal, "more", fmt.Errorf("a peer: %w", sent))
	if Reason(sent) != Denied || Reason(again) != Denied {
		t.Errorf("%q %q", Reason(sent), Reason(again))
	}
	if Because(nil, Denied) != nil || Reason(nil) != "" || Reason(io.EOF) != "" || Reason(Fail(t.Context(), codes.Internal, "x", io.EOF)) != "" {
		t.Error("a reason from nowhere")
	}
	for _, text := range []string{"denied", "sealpod-reason=", "sealpod-reason=other\r\nHeader: x"} {
		st, err := status.New(codes.Internal, "x").WithDetails(wrapperspb.String(text))
		if err != nil {
			t.Fatal(err)
		}
		if got := Reason(st.Err()); got != "" {
			t.Errorf("%q: %q", text, got)
		}
	}
}
