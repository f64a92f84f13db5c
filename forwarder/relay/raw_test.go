package relay

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// frame is a header with any body.
func frame(stream uint32, kind, flags byte, body []byte) []byte {
	return append(appendHeader(nil, header{uint32(len(body)), stream, kind, flags}), body...)
}

// requestFrame is a request of a method of the test agent.
func requestFrame(t testing.TB, stream uint32, method string, payload proto.Message) []byte {
	t.Helper()
	return frame(stream, typeRequest, 0, requestBody(t, method, payload, 0))
}

func requestBody(t testing.TB, method string, payload proto.Message, timeout time.Duration) []byte {
	t.Helper()
	return marshal(t, &ttrpc.Request{Service: service, Method: method, Payload: marshal(t, payload), TimeoutNano: int64(timeout)})
}

func marshal(t testing.TB, m proto.Message) []byte {
	t.Helper()
	p, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// text is a payload.
func text(s string) *bytesValue { return wrapperspb.Bytes([]byte(s)) }

// rawEnd is one end of a connection, frame by frame.
type rawEnd struct {
	t testing.TB
	net.Conn
}

func (r rawEnd) send(frames ...[]byte) {
	r.t.Helper()
	if _, err := r.Write(bytes.Join(frames, nil)); err != nil {
		r.t.Fatal(err)
	}
}

// next reads a frame that must come soon.
func (r rawEnd) next() (header, []byte) {
	r.t.Helper()
	_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
	return r.wait()
}

// wait reads a frame.
func (r rawEnd) wait() (header, []byte) {
	r.t.Helper()
	h, body, err := readFrame(r)
	if err != nil {
		r.t.Fatalf("reading a frame: %v", err)
	}
	return h, body
}

func readFrame(r io.Reader) (header, []byte, error) {
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(r, head); err != nil {
		return header{}, nil, err
	}
	h := getHeader(head)
	body := make([]byte, h.length)
	_, err := io.ReadFull(r, body)
	return h, body, err
}

// answer is a response that was received.
type answer struct {
	stream uint32
	code   codes.Code
	text   string // message of the status, or payload
}

// response reads a frame that must be a response.
func (r rawEnd) response() answer {
	r.t.Helper()
	h, body := r.next()
	if h.kind != typeResponse {
		r.t.Fatalf("got a frame of type %d", h.kind)
	}
	return parseAnswer(r.t, h, body)
}

func parseAnswer(t testing.TB, h header, body []byte) answer {
	t.Helper()
	var resp ttrpc.Response
	if err := proto.Unmarshal(body, &resp); err != nil {
		t.Fatal(err)
	}
	st := status.FromProto(resp.Status)
	if st.Code() != codes.OK {
		return answer{h.stream, st.Code(), st.Message()}
	}
	var v bytesValue
	if err := proto.Unmarshal(resp.Payload, &v); err != nil {
		t.Fatal(err)
	}
	return answer{h.stream, codes.OK, string(v.Value)}
}

// alive shows that the connection still serves calls, this one first.
func (r rawEnd) alive(stream uint32) {
	r.t.Helper()
	said := fmt.Sprint("alive ", stream)
	r.send(requestFrame(r.t, stream, "Echo", text(said)))
	if got, want := r.response(), (answer{stream, codes.OK, said}); got != want {
		r.t.Fatalf("got %v, want %v", got, want)
	}
}

// rawHost is a host without ttrpc, over a relay to an agent at path.
func rawHost(t testing.TB, path string) rawEnd {
	t.Helper()
	return rawEnd{t, serve(t, Config{Dial: dialTo(path)}, tcpPair).Conn}
}
