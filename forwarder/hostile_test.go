package forwarder

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
)

// frame is one of ttrpc. Source: containerd/ttrpc v1.2.10 channel.go.
func frame(stream uint32, kind, flags byte, body []byte) []byte {
	f := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	f = binary.BigEndian.AppendUint32(f, stream)
	return append(append(f, kind, flags), body...)
}

func request(t *testing.T, service, method string, payload proto.Message) []byte {
	t.Helper()
	p, err := proto.Marshal(payload)
	if err != nil {
		t.Fatal(err)
	}
	b, err := proto.Marshal(&ttrpc.Request{Service: service, Method: method, Payload: p})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// answer reads one frame.
func answer(t *testing.T, conn net.Conn) (stream uint32, r *ttrpc.Response) {
	t.Helper()
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	head := make([]byte, 10)
	if _, err := io.ReadFull(conn, head); err != nil {
		t.Fatal(err)
	}
	body := make([]byte, binary.BigEndian.Uint32(head))
	r = new(ttrpc.Response)
	_, err := io.ReadFull(conn, body)
	if err == nil {
		err = proto.Unmarshal(body, r)
	}
	if err != nil || head[8] != 2 {
		t.Fatalf("a frame of type %d: %v", head[8], err)
	}
	return binary.BigEndian.Uint32(head[4:]), r
}

// secured is a connection of the adaptor for frames of any kind.
func (l *lab) secured(t *testing.T) net.Conn {
	t.Helper()
	conn, err := l.node.dial(l.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return tls.Client(conn, l.worker.config(t))
}

func send(t *testing.T, conn net.Conn, frames ...[]byte) {
	t.Helper()
	_ = conn.SetWriteDeadline(time.Now().Add(20 * time.Second))
	if _, err := conn.Write(bytes.Join(frames, nil)); err != nil {
		t.Fatal(err)
	}
}

// hostile starts a forwarder with an agent and a good client, which must go on
// working, and ends with the same process.
func hostile(t *testing.T) *lab {
	t.Helper()
	l := newLab(t)
	l.agentProcess(t, false)
	p := l.start(t)
	l.forwarder = p
	good := l.adaptor(t)
	mustCheck(t, good)
	t.Cleanup(func() {
		mustCheck(t, good)
		p.stop()
		if strings.Contains(p.text(), "panic") || strings.Contains(p.text(), "DATA RACE") {
			t.Error(p.text())
		}
	})
	return l
}

// Weak point 3 of upstream: a request without OCI, or data for a stream that is
// not open, ends the forwarder, and with weak point 2 the pod.
func TestNoRequestEndsIt(t *testing.T) {
	l := hostile(t)
	c := l.adaptor(t)
	for name, r := range map[string]*agent.CreateContainerRequest{
		"no OCI":   {ContainerId: "x"},
		"no Linux": {ContainerId: "x", OCI: &agent.Spec{}},
	} {
		if _, err := agent.NewAgentServiceClient(c).CreateContainer(t.Context(), r); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustCheck(t, c)
	conn := l.secured(t)
	check := request(t, "grpc.Health", "Check", &agent.CheckRequest{})
	send(t, conn, frame(7, 3, 0, []byte("data")), frame(9, 1, 0, check))
	for {
		if stream, r := answer(t, conn); stream == 9 {
			if r.GetStatus().GetCode() != 0 {
				t.Errorf("%v", r.Status)
			}
			break
		}
	}
	for _, method := range []string{"CreateContainer", "CreateSandbox", "DestroySandbox"} {
		_, err := agenttest.RawCall(t.Context(), c, "grpc.AgentService", method, []byte("\xff\xff\xff no message"))
		if code := status.Code(err); err == nil || code == codes.Unavailable {
			t.Errorf("%s with garbage: %v", method, err)
		}
	}
}

// Weak point 4 of upstream: a failed handshake leaks a file and a goroutine.
func TestAThousandPlaintextProbesLeakNothing(t *testing.T) {
	l := hostile(t)
	mustCheck(t, l.adaptor(t))
	files, goroutines := l.forwarder.files(), l.metric(t, "sealpod_forwarder_goroutines")
	for i := range 1000 {
		conn, err := l.node.dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		switch i % 4 {
		case 0:
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: podvm\r\n\r\n"))
		case 1:
			_, _ = conn.Write(frame(1, 1, 0, []byte("ttrpc without TLS")))
		case 2: // a stranger that hangs up
		case 3: // one that does not, until the test ends
			defer conn.Close()
			continue
		}
		conn.Close()
	}
	until(t, "only the last strangers are left", func() bool {
		most := defaultLimits.strangers
		return l.forwarder.files() <= files+most && l.metric(t, "sealpod_forwarder_goroutines") <= goroutines+3*float64(most)
	})
	mustCheck(t, l.adaptor(t))
}

func TestProbesAreForgotten(t *testing.T) {
	l := hostile(t)
	files, goroutines := l.forwarder.files(), l.metric(t, "sealpod_forwarder_goroutines")
	var probes []net.Conn
	for range 1000 {
		conn, err := l.node.dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte("\x16\x03\x01"))
		probes = append(probes, conn)
	}
	for _, c := range probes {
		c.Close()
	}
	until(t, "files and goroutines are as before", func() bool {
		return l.forwarder.files() <= files && l.metric(t, "sealpod_forwarder_goroutines") <= goroutines
	})
}

func TestHandshakesThatMustFail(t *testing.T) {
	l := hostile(t)
	other := autoWorker(t)
	for name, change := range map[string]func(*tls.Config){
		"TLS 1.1":         func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS11, tls.VersionTLS11 },
		"no certificate":  func(c *tls.Config) { c.GetClientCertificate = nil },
		"another adaptor": func(c *tls.Config) { c.GetClientCertificate = other.config(t).GetClientCertificate },
		"another server":  func(c *tls.Config) { c.RootCAs = other.config(t).RootCAs },
	} {
		c := l.worker.config(t)
		change(c)
		// With TLS 1.3 the client learns of it when it reads.
		client, err := l.connect(c)
		if err == nil {
			if err = check(client, 20*time.Second); !closed(err) && !strings.Contains(err.Error(), "tls: ") {
				t.Errorf("%s: %v", name, err)
			}
			client.Close()
		}
	}
}

func TestAnExpiredClientIsRefused(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	l.worker.client = expiredClient(t)
	l.write(t, nil)
	p := l.start(t)
	c, err := l.connect(l.worker.config(t))
	if err == nil {
		err = check(c, 20*time.Second)
		c.Close()
	}
	if err == nil {
		t.Error("it got in")
	}
	until(t, "the log says why", func() bool { return strings.Contains(p.text(), "expired") })
	p.stop()
}

func TestFramesThatAreNone(t *testing.T) {
	l := hostile(t)
	check := request(t, "grpc.Health", "Check", &agent.CheckRequest{})
	for name, garbage := range map[string][]byte{
		"noise":               bytes.Repeat([]byte{0xa5, 0x5a, 0xff}, 10000),
		"4 GiB":               append(binary.BigEndian.AppendUint32(nil, 0xffffffff), 0, 0, 0, 1, 1, 0),
		"half a header":       {0, 0, 0},
		"half a frame":        frame(1, 1, 0, check)[:15],
		"a response":          frame(1, 2, 0, nil),
		"an unknown type":     frame(1, 77, 0, []byte("x")),
		"a broken request":    frame(1, 1, 0, []byte("\xff\xff\xff")),
		"an empty request":    frame(1, 1, 0, nil),
		"many broken ones":    bytes.Repeat(frame(1, 1, 0, []byte("\xff")), 5000),
		"half a frame, large": frame(1, 1, 0, make([]byte, 4<<20))[:1<<20],
	} {
		conn := l.secured(t)
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		_, _ = conn.Write(garbage)
		if err := checkStill(l, t); err != nil {
			t.Errorf("after %s: %v", name, err)
		}
		conn.Close()
	}
}

func checkStill(l *lab, t *testing.T) error {
	c, err := l.connect(l.worker.config(t))
	if err != nil {
		return err
	}
	defer c.Close()
	return check(c, 20*time.Second)
}

func TestStreamIDs(t *testing.T) {
	l := hostile(t)
	conn := l.secured(t)
	check := request(t, "grpc.Health", "Check", &agent.CheckRequest{})
	send(t, conn, frame(5, 1, 0, check))
	if stream, r := answer(t, conn); stream != 5 || r.GetStatus().GetCode() != 0 {
		t.Fatalf("stream %d: %v", stream, r.Status)
	}
	for _, bad := range []uint32{6, 5, 3} { // even, reused, lower
		send(t, conn, frame(bad, 1, 0, check))
		if stream, r := answer(t, conn); stream != bad || codes.Code(r.GetStatus().GetCode()) != codes.InvalidArgument {
			t.Errorf("stream %d: answer on %d: %v", bad, stream, r.Status)
		}
	}
	send(t, conn, frame(7, 1, 0, check))
	if stream, r := answer(t, conn); stream != 7 || r.GetStatus().GetCode() != 0 {
		t.Errorf("stream %d: %v", stream, r.Status)
	}
}

func TestItSurvivesRunningOutOfFiles(t *testing.T) {
	l := hostile(t)
	n := uint64(l.forwarder.files() + 12)
	if err := unix.Prlimit(l.forwarder.cmd.Process.Pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: n, Max: n}, nil); err != nil {
		t.Fatal(err)
	}
	for range 30 {
		conn, err := l.node.dial(l.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	until(t, "files run out", func() bool { return strings.Contains(l.forwarder.text(), "too many open files") })
	// They stay, and yet:
	until(t, "a client gets in", func() bool { return checkStill(l, t) == nil })
}

// Weak point 5 of upstream: a reply of more than 4 MiB ends the connection to the
// agent, which all share.
func TestOversizeFailsItsCallAlone(t *testing.T) {
	l := hostile(t)
	c := l.adaptor(t)
	waiting := l.waitProcess(t, c, "x", 0)
	ctx := agenttest.With(t.Context(), agenttest.AskReply, "5000000")
	if _, err := agent.NewHealthClient(c).Check(ctx, &agent.CheckRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("an oversize reply: %v", err)
	}
	conn := l.secured(t)
	body := request(t, "grpc.Health", "Check", &agent.CheckRequest{})
	send(t, conn, frame(1, 1, 0, make([]byte, 4<<20+1)), frame(3, 1, 0, body))
	for range 2 {
		switch stream, r := answer(t, conn); {
		case stream == 1 && codes.Code(r.GetStatus().GetCode()) == codes.ResourceExhausted:
		case stream == 3 && r.GetStatus().GetCode() == 0:
		default:
			t.Errorf("stream %d: %v", stream, r.Status)
		}
	}
	if _, err := agent.NewAgentServiceClient(c).SignalProcess(t.Context(), &agent.SignalProcessRequest{ContainerId: "x", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("a call on the same connections: %v", err)
	}
}

func TestASlowReaderStopsNobody(t *testing.T) {
	l := hostile(t)
	slow := l.secured(t)
	body, err := proto.Marshal(&ttrpc.Request{
		Service: "grpc.Health", Method: "Check", Metadata: []*ttrpc.KeyValue{{Key: agenttest.AskReply, Value: "4000000"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(50) { // 200 MB that it does not read
		send(t, slow, frame(2*i+1, 1, 0, body))
	}
	for range 20 {
		if err := checkStill(l, t); err != nil {
			t.Fatal(err)
		}
	}
}
