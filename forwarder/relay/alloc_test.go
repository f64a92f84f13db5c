package relay

import (
	"io"
	"net"
	"testing"
	"time"
)

// nowhere is a connection that takes everything and gives nothing.
type nowhere struct{ net.Conn }

func (nowhere) Read([]byte) (int, error)         { return 0, io.EOF }
func (nowhere) Write(p []byte) (int, error)      { return len(p), nil }
func (nowhere) Close() error                     { return nil }
func (nowhere) SetReadDeadline(time.Time) error  { return nil }
func (nowhere) SetWriteDeadline(time.Time) error { return nil }

// oneCall is what the relay itself does for a call: there and back.
func oneCall(t testing.TB) func() {
	s := &session{relay: New(Config{}), open: map[uint32]*stream{}, out: newWriter(nowhere{}, hostTime)}
	a := &agent{s: s, out: newWriter(nowhere{}, hostTime), streams: map[uint32]caller{}}
	s.agent = a
	there := requestFrame(t, 1, "Echo", &bytesValue{Value: make([]byte, 64)})
	back := frame(1, typeResponse, 0, make([]byte, 64))
	host := uint32(1)
	return func() {
		setStream(there, host)
		s.forward(there)
		setStream(back, a.last)
		s.mu.Lock()
		pass := a.sort(back)
		s.mu.Unlock()
		s.answer(pass)
		host += 2
	}
}

func TestCallsThatPassCostNoMemory(t *testing.T) {
	if n := testing.AllocsPerRun(1000, oneCall(t)); n > 0 {
		t.Errorf("%v allocations per call", n)
	}
}

func BenchmarkOneCall(b *testing.B) {
	call := oneCall(b)
	b.ReportAllocs()
	for b.Loop() {
		call()
	}
}
