package relay

import (
	"context"
	"net"
	"testing"

	"google.golang.org/grpc/codes"
)

// The answer of a stream is the agent's, though the host sends data that crosses
// it: that the stream is over comes after it.
func TestAnswerComesBeforeRefusals(t *testing.T) {
	const streams = 5000
	host := rawEnd{t, serve(t, Config{Dial: func(context.Context) (net.Conn, error) {
		mine, theirs := tcpPair(t)
		go func() {
			defer theirs.Close()
			for {
				h, _, err := readFrame(theirs)
				if err != nil {
					return
				}
				if h.kind == typeRequest {
					_, _ = theirs.Write(frame(h.stream, typeResponse, 0, nil))
				}
			}
		}()
		return mine, nil
	}}, tcpPair).Conn}
	room := make(chan struct{}, maxHeld/2) // also before there is an agent
	go func() {
		for i := range uint32(streams) {
			room <- struct{}{}
			_, _ = host.Write(frame(2*i+1, typeRequest, flagRemoteOpen, requestBody(t, "A", text("x"), 0)))
			for range 20 {
				_, _ = host.Write(frame(2*i+1, typeData, 0, nil))
			}
		}
	}()
	for answered := map[uint32]bool{}; len(answered) < streams; {
		got := host.response()
		if !answered[got.stream] && got.code != codes.OK {
			t.Fatalf("the first answer is %v", got)
		}
		if !answered[got.stream] {
			<-room
		}
		answered[got.stream] = true
	}
}
