package rpc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"testing/iotest"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/datahub"
)

// frame returns a ttrpc frame of stream 1.
func frame(kind, flags byte, body []byte) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	out = binary.BigEndian.AppendUint32(out, 1)
	return append(append(out, kind, flags), body...)
}

// getResource returns a request frame for path.
func getResource(t testing.TB, path string) []byte {
	t.Helper()
	payload, err := proto.Marshal(&datahub.GetResourceRequest{ResourcePath: path})
	if err != nil {
		t.Fatal(err)
	}
	body, err := proto.Marshal(&ttrpc.Request{Service: "api.GetResourceService", Method: "GetResource", Payload: payload})
	if err != nil {
		t.Fatal(err)
	}
	return frame(frameRequest, 0, body)
}

// A frame of stream data for a call that runs makes ttrpc use a handler that
// calls without streams do not have, which ends the process.
func TestStreamDataForARunningCallEndsTheConnectionOnly(t *testing.T) {
	for name, flags := range map[string]byte{"data": 0, "close": 1, "close without data": 5} {
		t.Run(name, func(t *testing.T) {
			h := &hub{entered: make(chan struct{}), release: make(chan struct{})}
			srv := start(t, h, filepath.Join(t.TempDir(), "s.sock"))
			conn, err := net.Dial("unix", srv.path)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := conn.Write(getResource(t, "block")); err != nil {
				t.Fatal(err)
			}
			<-h.entered
			if _, err := conn.Write(frame(3, flags, nil)); err != nil {
				t.Fatal(err)
			}
			if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
				t.Errorf("answered %x, %v, want the end", b, err)
			}
			close(h.release)
			if got, err := get(t.Context(), client(t, srv.path), "x"); err != nil || got != "x" {
				t.Fatalf("after the attack: %q, %v", got, err)
			}
		})
	}
}

// stream is a connection that only reads.
type stream struct {
	net.Conn
	io.Reader
}

func (s stream) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func TestOnlyRequestFramesPass(t *testing.T) {
	good := append(frame(1, 0, []byte("abc")), frame(1, 0, nil)...)
	long := frame(1, 0, bytes.Repeat([]byte{3}, 9000))
	for name, c := range map[string]struct{ in, out []byte }{
		"requests":              {good, good},
		"a long request":        {long, long},
		"a cut header":          {good[:20], good[:20]},
		"data first":            {append(frame(3, 0, nil), good...), nil},
		"a response":            {append(bytes.Clone(good), frame(2, 0, nil)...), good},
		"data after a request":  {append(append(bytes.Clone(good), frame(3, 0, nil)...), good...), good},
		"data after a long one": {append(bytes.Clone(long), frame(3, 4, nil)...), long},
	} {
		for how, reader := range map[string]io.Reader{"at once": bytes.NewReader(c.in), "by bytes": iotest.OneByteReader(bytes.NewReader(c.in))} {
			got, err := io.ReadAll(&requestConn{Conn: stream{Reader: reader}})
			// A header that is not let through may have been begun.
			if err != nil || !bytes.HasPrefix(got, c.out) || len(got) > len(c.out)+frameHeader-1 {
				t.Errorf("%s %s: %d bytes, %v, want %d", name, how, len(got), err, len(c.out))
			}
		}
	}
}

func TestAFrameThatIsNoRequestIsTheEndForGood(t *testing.T) {
	c := &requestConn{Conn: stream{Reader: bytes.NewReader(append(frame(3, 0, nil), getResource(t, "x")...))}}
	for range 3 {
		if n, err := c.Read(make([]byte, 4096)); n != 0 || !errors.Is(err, io.EOF) {
			t.Fatalf("read %d bytes, %v", n, err)
		}
	}
}

func FuzzRequestConn(f *testing.F) {
	f.Add(getResource(f, "x"), 4096)
	f.Add(append(getResource(f, "x"), frame(3, 0, []byte("y"))...), 7)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		c := &requestConn{Conn: stream{Reader: bytes.NewReader(in)}}
		p := make([]byte, 1+(size&0xfff))
		var got []byte
		for {
			n, err := c.Read(p)
			got = append(got, p[:n]...)
			if err != nil {
				break
			}
		}
		if !bytes.HasPrefix(in, got) {
			t.Fatalf("%x became %x", in, got)
		}
		for len(got) >= frameHeader {
			if got[8] != frameRequest {
				t.Fatalf("a frame of type %d passed", got[8])
			}
			n := frameHeader + int(binary.BigEndian.Uint32(got))
			got = got[min(n, len(got)):]
		}
	})
}
