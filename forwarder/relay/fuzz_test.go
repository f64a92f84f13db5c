package relay

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// requests are bodies to begin with.
func requests(t testing.TB) [][]byte {
	good := requestBody(t, "Echo", text("x"), time.Second)
	meta, err := proto.Marshal(&ttrpc.Request{Service: "s", Method: "m", Metadata: []*ttrpc.KeyValue{{Key: "k", Value: "v"}}})
	if err != nil {
		t.Fatal(err)
	}
	twice := append(bytes.Clone(good), requestBody(t, "Other", text("y"), time.Hour)...)
	group := protowire.AppendTag(nil, 9, protowire.StartGroupType)
	group = protowire.AppendTag(append(group, good...), 9, protowire.EndGroupType)
	wrong := protowire.AppendVarint(protowire.AppendTag(bytes.Clone(good), fieldMethod, protowire.VarintType), 3)
	wrong = protowire.AppendString(protowire.AppendTag(wrong, fieldTimeout, protowire.BytesType), "soon")
	long := append(bytes.Clone(good), 0xa0, 0x80, 0x00, 0x05) // field 4, a tag longer than it must be
	return [][]byte{nil, good, meta, twice, append(group, good...), wrong, long, good[:5], {0x0b}, {0x0c}, {0}, bytes.Repeat([]byte{0xff}, 12)}
}

func FuzzRequest(f *testing.F) {
	for _, p := range requests(f) {
		f.Add(p, []byte("new"), int64(time.Second))
	}
	f.Fuzz(func(t *testing.T, p, payload []byte, timeout int64) {
		var want ttrpc.Request
		wantErr := proto.Unmarshal(p, &want)
		got, err := parseRequest(p)
		if err != nil {
			if wantErr == nil {
				t.Fatalf("%x: %v, and ttrpc takes it", p, err)
			}
			return
		}
		if wantErr != nil {
			return // text that is not UTF-8, or metadata: the agent will say so
		}
		if string(got.service) != want.Service || string(got.method) != want.Method || !bytes.Equal(got.payload, want.Payload) || int64(got.timeout) != want.TimeoutNano {
			t.Fatalf("%x: got %v, want %v", p, got, &want)
		}
		var is ttrpc.Request
		if err := proto.Unmarshal(appendWithTimeout(nil, withPayload(p, payload), time.Duration(timeout)), &is); err != nil {
			t.Fatal(err)
		}
		want.Payload, want.TimeoutNano = payload, timeout
		if !sameRequest(&is, &want) {
			t.Fatalf("%x: rewritten to %v, want %v", p, &is, &want)
		}
		if left := time.Duration(timeout); left > 0 && left <= got.timeout {
			if n := len(appendWithTimeout(nil, p, left)); n > len(p) {
				t.Fatalf("%x: grew from %d to %d bytes", p, len(p), n)
			}
		}
	})
}

// sameRequest compares with unknown fields in their order.
func sameRequest(a, b *ttrpc.Request) bool {
	if len(a.Payload) == 0 && len(b.Payload) == 0 {
		a.Payload, b.Payload = nil, nil
	}
	return bytes.Equal(a.ProtoReflect().GetUnknown(), b.ProtoReflect().GetUnknown()) && proto.Equal(a, b)
}

// chunks is a connection that reads in pieces.
type chunks struct {
	net.Conn
	in   []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (*chunks) SetReadDeadline(time.Time) error { return nil }

func FuzzReader(f *testing.F) {
	one := frame(1, typeRequest, 0, []byte("abc"))
	f.Add(slices.Concat(one, one, one), 7, 64)
	f.Add(frame(3, typeData, 1, make([]byte, 200)), 64, 16)
	f.Add(append(appendHeader(nil, header{maxBody + 1, 1, 1, 0}), one...), 9, 32)
	f.Add(appendHeader(nil, header{1<<32 - 1, 1, 1, 0}), 9, 32)
	f.Fuzz(func(t *testing.T, in []byte, size, buffer int) {
		r := newReader(&chunks{in: in, size: 1 + size&0xfff}, headerSize+buffer&0xfff, hostTime)
		var got []byte
		for {
			frames, err := r.next()
			if errors.Is(err, io.EOF) && !bytes.Equal(got, in) || errors.Is(err, io.ErrUnexpectedEOF) && !bytes.HasPrefix(in, got) {
				t.Fatalf("%x became %x", in, got)
			}
			if err != nil {
				break // too large: the test has not that much to discard
			}
			if whole, _ := wholeFrames(frames); whole != len(frames) || whole == 0 {
				t.Fatalf("%x is not frames", frames)
			}
			got = append(got, frames...)
		}
		r.release()
	})
}

// FuzzBothEnds lets host and agent send anything: what the other one gets is
// frames of streams that are open.
func FuzzBothEnds(f *testing.F) {
	for _, p := range requests(f) {
		f.Add(slices.Concat(frame(1, 1, 0, p), frame(3, 1, flagRemoteOpen, p), frame(3, 3, 0, p), frame(5, 1, 0, p)),
			slices.Concat(frame(1, 2, 0, p), frame(3, 3, 0, p), frame(3, 3, 1, p), frame(9, 2, 0, p)))
	}
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte("\x00\x00\x00\x00\x00\x00\x00\x01\x02\x00"))
	f.Fuzz(func(t *testing.T, fromHost, fromAgent []byte) {
		agents := make(chan net.Conn, 1)
		var wg sync.WaitGroup
		cfg := Config{
			Dial: func(context.Context) (net.Conn, error) {
				mine, theirs := net.Pipe()
				select {
				case agents <- theirs:
				default: // its answers go nowhere
					wg.Go(func() { _, _ = io.Copy(io.Discard, theirs) })
				}
				return mine, nil
			},
			Methods: map[string]Method{"/" + service + "/Echo": func(_ context.Context, p []byte) ([]byte, error) { return p, nil }},
		}
		client, server := net.Pipe()
		served := make(chan error, 1)
		r := New(cfg)
		go func() { served <- r.Serve(context.Background(), server) }()
		opened := uint32(0)
		wg.Go(func() {
			var conn net.Conn
			if conn = <-agents; conn == nil {
				return
			}
			wg.Go(func() { _, _ = conn.Write(fromAgent); _ = conn.Close() })
			for {
				h, body, err := readFrame(conn)
				if err != nil {
					return
				}
				if h.kind == typeRequest {
					if _, err := parseRequest(body); err != nil || h.stream <= opened || h.stream%2 == 0 {
						t.Errorf("the agent got stream %d after %d, %v", h.stream, opened, err)
					}
					opened = h.stream
				} else if h.kind != typeData || h.stream > opened {
					t.Errorf("the agent got %v", h)
				}
			}
		})
		wg.Go(func() {
			for {
				if _, _, err := readFrame(client); err != nil {
					return
				}
			}
		})
		_, _ = client.Write(fromHost)
		client.Close()
		<-served
		close(agents)
		wg.Wait()
	})
}
