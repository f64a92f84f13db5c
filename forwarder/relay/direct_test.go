package relay

import (
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

// script is frames for a ttrpc server, and how many it answers with.
type script struct {
	frames  []byte
	answers int
}

// newScript makes one by chance. It leaves out what ends Go's ttrpc server:
// stream data for a unary call that runs.
func newScript(t testing.TB, seed uint64) script {
	r := rand.New(rand.NewPCG(seed, 1))
	var s script
	add := func(answers int, f []byte) {
		s.frames = append(s.frames, f...)
		s.answers += answers
	}
	var talking []uint32
	stream := uint32(1)
	for range 5 + r.IntN(60) {
		stream += 2 * (1 + r.Uint32N(3))
		payload := &bytesValue{Value: megabytes[:r.IntN(1<<r.IntN(18))]}
		switch r.IntN(12) {
		case 0:
			add(1, requestFrame(t, stream, "Fail", payload))
		case 1:
			add(1, requestFrame(t, stream, "Unknown", payload))
		case 2:
			n := r.Uint32N(40)
			add(int(n)+1, frame(stream, typeRequest, flagRemoteClosed, requestBody(t, "Count", wrapperspb.UInt32(n), 0)))
		case 3:
			add(0, frame(stream, typeRequest, flagRemoteOpen, requestBody(t, "Talk", &bytesValue{}, 0)))
			talking = append(talking, stream)
		case 4, 5:
			if len(talking) > 0 {
				add(1, frame(talking[r.IntN(len(talking))], typeData, 0, marshal(t, payload)))
			}
		case 6:
			if len(talking) > 0 {
				i := r.IntN(len(talking))
				add(1, frame(talking[i], typeData, flagRemoteClosed|flagNoData, nil))
				talking = slices.Delete(talking, i, i+1)
			}
		case 7:
			add(1, frame(stream+1, byte(r.IntN(5)), 0, nil)) // even
		case 8:
			add(1, frame(1, typeData, 0, nil)) // never open
		case 9:
			add(0, frame(stream, typeResponse+2*byte(r.IntN(2)), 0, marshal(t, payload)))
		case 10:
			add(1, frame(stream, typeRequest, 0, []byte{0xff})) // malformed
		default:
			add(1, requestFrame(t, stream, "Echo", payload))
		}
	}
	return s
}

// play sends a script in pieces and returns the answers of each stream.
func play(t testing.TB, conn net.Conn, s script, seed uint64) map[uint32][]string {
	r := rand.New(rand.NewPCG(seed, 2))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for rest := s.frames; len(rest) > 0; {
			n := min(len(rest), 1+r.IntN(1<<r.IntN(17)))
			if _, err := conn.Write(rest[:n]); err != nil {
				return
			}
			rest = rest[n:]
		}
	}()
	got := map[uint32][]string{}
	for range s.answers {
		_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		h, body, err := readFrame(conn)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		what := fmt.Sprintf("%d/%d/%x", h.kind, h.flags, body)
		if a := (answer{}); h.kind == typeResponse {
			if a = parseAnswer(t, h, body); a.code == 3 { // InvalidArgument: protobuf's texts vary from run to run
				what = fmt.Sprintf("%v %.20s", a.code, a.text)
			}
		}
		got[h.stream] = append(got[h.stream], what)
	}
	<-sent
	return got
}

// FuzzLikeDirect compares what a host gets through a relay with what it gets
// from the agent's own socket.
func FuzzLikeDirect(f *testing.F) {
	for seed := range uint64(40) {
		f.Add(seed)
	}
	path := socket(f)
	startAgent(f, path)
	f.Fuzz(func(t *testing.T, seed uint64) {
		s := newScript(t, seed)
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		want := play(t, conn, s, seed)
		for name, pair := range map[string]func(testing.TB) (net.Conn, net.Conn){"tls": tlsPair, "socket": socketPair} {
			host := serve(t, Config{Dial: dialTo(path)}, pair)
			got := play(t, host.Conn, s, seed)
			for stream := range want {
				if !slices.Equal(got[stream], want[stream]) {
					t.Errorf("%s, seed %d, stream %d: got %.200q, want %.200q", name, seed, stream, got[stream], want[stream])
				}
			}
			if len(got) != len(want) {
				t.Errorf("%s, seed %d: answers on %d streams, want %d", name, seed, len(got), len(want))
			}
		}
	})
}
