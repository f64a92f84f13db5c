package agenttest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
)

// A ttrpc frame. Source: containerd/ttrpc v1.2.10, PROTOCOL.md and channel.go.
const (
	headerSize   = 10 // length and stream id as big-endian uint32, type, flags
	maxFrame     = 4 << 20
	typeRequest  = 1
	typeResponse = 2
)

// What the front makes of a method that the server does not know.
const (
	echoService = "agenttest"
	echoUnary   = "Echo"
	echoStream  = "Stream"
	askedMethod = "agenttest-method" // metadata: the method's real name
)

// front stands between a connection and ttrpc's server, and does what that cannot:
// it takes calls of methods that are not registered to the echo, and sends replies
// that are too long or end too early. All else it passes on.
type front struct {
	*conn
	in      []byte // of a frame, for the server to read
	skipped int    // bytes of a frame that follow in unread
	out     []byte // of the server's frame, as far as it was written

	mu      sync.Mutex
	special map[uint32]treatment // by stream id
}

// treatment is what becomes of the reply on a stream.
type treatment struct {
	reply int // bytes of a payload that ttrpc would not send; 0 for the server's
	cut   int // bytes of the frame to send before the connection ends; -1 for all
}

func newFront(c *conn) *front { return &front{conn: c, special: map[uint32]treatment{}} }

// Read gives the server the next bytes of the client, changed.
func (f *front) Read(p []byte) (int, error) {
	if len(f.in) == 0 && f.skipped > 0 {
		n, err := f.conn.Read(p[:min(len(p), f.skipped)])
		f.skipped -= n
		return n, err
	}
	if len(f.in) == 0 {
		frame := make([]byte, headerSize)
		n, err := io.ReadFull(f.conn, frame)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return copy(p, frame[:n]), nil
		} else if err != nil {
			return 0, err
		}
		size := binary.BigEndian.Uint32(frame)
		if size > maxFrame {
			f.skipped = int(size)
		} else {
			frame = append(frame, make([]byte, size)...)
			if _, err := io.ReadFull(f.conn, frame[headerSize:]); err != nil {
				return 0, err
			}
			frame = f.admit(frame)
		}
		f.in = frame
	}
	n := copy(p, f.in)
	f.in = f.in[n:]
	return n, nil
}

// known are the methods that the server has.
var known = func() map[string]bool {
	m := map[string]bool{}
	services := agent.File_agent_agent_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m["/"+string(services.Get(i).FullName())+"/"+string(methods.Get(j).Name())] = true
		}
	}
	return m
}()

// admit returns the frame the server gets for that of a client.
func (f *front) admit(frame []byte) []byte {
	var req ttrpc.Request
	if frame[8] != typeRequest || proto.Unmarshal(frame[headerSize:], &req) != nil {
		return frame
	}
	id := binary.BigEndian.Uint32(frame[4:])
	md := ttrpc.MD{}
	for _, kv := range req.Metadata {
		md.Append(kv.Key, kv.Value)
	}
	t := treatment{cut: -1}
	if n, err := strconv.Atoi(ask(md, AskReply)); err == nil && n > maxReply {
		t.reply = n
	}
	if n, err := strconv.Atoi(ask(md, AskCut)); err == nil {
		t.cut = n
	}
	if t.reply != 0 || t.cut >= 0 {
		f.mu.Lock()
		f.special[id] = t
		f.mu.Unlock()
	}
	name := "/" + req.Service + "/" + req.Method
	if known[name] || req.Service == echoService {
		return frame
	}
	req.Metadata = append(req.Metadata, &ttrpc.KeyValue{Key: askedMethod, Value: name})
	req.Service, req.Method = echoService, echoUnary
	if frame[9] != 0 {
		req.Method = echoStream
	}
	body, err := proto.Marshal(&req)
	if err != nil {
		return frame
	}
	out := append(frame[:headerSize:headerSize], body...)
	binary.BigEndian.PutUint32(out, uint32(len(body)))
	return out
}

// Write sends what the server writes, frame by frame.
func (f *front) Write(p []byte) (int, error) {
	f.out = append(f.out, p...)
	for len(f.out) >= headerSize {
		size := headerSize + int(binary.BigEndian.Uint32(f.out))
		if len(f.out) < size {
			break
		}
		if err := f.send(f.out[:size]); err != nil {
			return 0, err
		}
		f.out = f.out[size:]
	}
	if len(f.out) == 0 {
		f.out = nil
	}
	return len(p), nil
}

func (f *front) send(frame []byte) error {
	id := binary.BigEndian.Uint32(frame[4:])
	f.mu.Lock()
	t, ok := f.special[id]
	if ok {
		delete(f.special, id)
	}
	f.mu.Unlock()
	if ok && t.reply != 0 {
		body, err := proto.Marshal(&ttrpc.Response{Payload: make([]byte, t.reply)})
		if err != nil {
			return err
		}
		header := append([]byte{}, frame[:headerSize]...)
		binary.BigEndian.PutUint32(header, uint32(len(body)))
		frame = append(header, body...)
	}
	if ok && t.cut >= 0 {
		_, err := f.conn.Write(frame[:min(t.cut, len(frame))])
		return errors.Join(err, f.Close(), io.ErrClosedPipe)
	}
	_, err := f.conn.Write(frame)
	return err
}

// echo is the service for what nobody knows.
func (a *Agent) echo() *ttrpc.ServiceDesc {
	return &ttrpc.ServiceDesc{
		Methods: map[string]ttrpc.Method{echoUnary: func(_ context.Context, unmarshal func(any) error) (any, error) {
			var raw Raw
			err := unmarshal(&raw)
			return &raw, err
		}},
		Streams: map[string]ttrpc.Stream{echoStream: {StreamingClient: true, StreamingServer: true, Handler: a.stream}},
	}
}

// stream sends back every message until the client closes its side. ttrpc's
// client sends no metadata with a stream, so a message "agenttest-id=…" or
// "agenttest-status=…" asks instead; the status ends the stream.
func (a *Agent) stream(ctx context.Context, s ttrpc.StreamServer) (any, error) {
	if !a.begin() {
		return nil, ttrpc.ErrClosed
	}
	defer a.calls.Done()
	name, _ := ttrpc.GetMetadataValue(ctx, askedMethod)
	if err := a.deliver(ctx, name, func() ([]byte, error) { return nil, nil }); err != nil {
		return nil, err
	}
	for {
		var raw Raw
		if err := s.RecvMsg(&raw); errors.Is(err, io.EOF) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		if id, ok := strings.CutPrefix(string(raw.Bytes), AskID+"="); ok {
			if err := a.count(id, name); err != nil {
				return nil, err
			}
		}
		if code, ok := strings.CutPrefix(string(raw.Bytes), AskStatus+"="); ok {
			return nil, asked(code)
		}
		if err := s.SendMsg(&raw); err != nil {
			return nil, err
		}
	}
}
