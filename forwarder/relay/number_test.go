package relay

import (
	"context"
	"net"
	"slices"
	"testing"

	"google.golang.org/grpc/codes"
)

// rawAgents is a Config.Dial whose other ends are given out.
func rawAgents(t testing.TB, out chan<- rawEnd) func(context.Context) (net.Conn, error) {
	return func(context.Context) (net.Conn, error) {
		mine, theirs := tcpPair(t)
		t.Cleanup(func() { theirs.Close() })
		out <- rawEnd{t, theirs}
		return mine, nil
	}
}

// This is why streams are renumbered: Go's ttrpc server refuses a request with a
// lower number than another had, which is what one that was held back has.
func TestGoServerRefusesNumbersThatDoNotIncrease(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	direct := rawEnd{t, conn}
	direct.alive(3)
	direct.send(requestFrame(t, 1, "Echo", text("late")))
	if got := direct.response(); got.code != codes.InvalidArgument {
		t.Fatalf("got %v: the relay can pass numbers unchanged", got)
	}
}

func TestHeldBackCallIsOvertakenAndStillAccepted(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	release := make(chan struct{})
	c := client(t, Config{Dial: dialTo(path), Methods: map[string]Method{
		"/" + service + "/Meta": func(_ context.Context, p []byte) ([]byte, error) {
			<-release
			return p, nil
		},
	}})
	late := make(chan error, 1)
	go func() { late <- c.Call(context.Background(), service, "Meta", text("x"), &bytesValue{}) }()
	for range 10 {
		if _, err := echo(t.Context(), c, "first"); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	if err := <-late; err != nil {
		t.Error(err)
	}
}

func TestNumbersOfEachAgentConnectionAreItsOwn(t *testing.T) {
	agents := make(chan rawEnd, 2)
	host := rawEnd{t, serve(t, Config{Dial: rawAgents(t, agents)}, tcpPair).Conn}
	host.send(requestFrame(t, 101, "Echo", text("a")), requestFrame(t, 205, "Echo", text("b")))
	first := <-agents
	var got []uint32
	for range 2 {
		h, _ := first.next()
		got = append(got, h.stream)
	}
	// Answers come in any order and go to those who asked.
	first.send(frame(3, typeResponse, 0, nil), frame(1, typeResponse, 0, nil))
	for range 2 {
		h, _ := host.next()
		got = append(got, h.stream)
	}
	host.send(requestFrame(t, 207, "Echo", text("in flight")))
	first.next()
	first.Close()
	if got := host.response(); got.stream != 207 || got.code != codes.Unavailable {
		t.Errorf("got %v", got)
	}
	host.send(requestFrame(t, 301, "Echo", text("c")))
	second := <-agents
	h, _ := second.next()
	if got = append(got, h.stream); !slices.Equal(got, []uint32{1, 3, 205, 101, 1}) {
		t.Errorf("got %d", got)
	}
}
