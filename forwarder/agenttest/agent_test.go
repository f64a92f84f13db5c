package agenttest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sealpod/sealpod/api/agent"
)

func TestProcessesCopyTheirInput(t *testing.T) {
	c := agent.NewAgentServiceClient(client(t, Start(t, Config{}).Path()))
	ctx := t.Context()
	type read struct {
		r   *agent.ReadStreamResponse
		err error
	}
	reads := make(chan read, 1)
	go func() {
		r, err := c.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "c", ExecId: "e", Len: 3})
		reads <- read{r, err}
	}()
	waits := make(chan int32, 1)
	go func() {
		r, _ := c.WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: "c", ExecId: "e"})
		waits <- r.GetStatus()
	}()
	if w, err := c.WriteStdin(ctx, &agent.WriteStreamRequest{ContainerId: "c", ExecId: "e", Data: []byte("hello")}); err != nil || w.Len != 5 {
		t.Fatal(w, err)
	}
	if r := <-reads; r.err != nil || string(r.r.Data) != "hel" {
		t.Errorf("%+v", r)
	}
	if r, err := c.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "c", ExecId: "e", Len: 100}); err != nil || string(r.Data) != "lo" {
		t.Errorf("%v, %v", r, err)
	}
	select {
	case s := <-waits:
		t.Fatalf("it exited with %d before its end", s)
	default:
	}
	if _, err := c.SignalProcess(ctx, &agent.SignalProcessRequest{ContainerId: "c", ExecId: "e", Signal: 9}); err != nil {
		t.Fatal(err)
	}
	if s := <-waits; s != 137 {
		t.Errorf("status %d, want 137", s)
	}
	if r, err := c.ReadStdout(ctx, &agent.ReadStreamRequest{ContainerId: "c", ExecId: "e", Len: 100}); err != nil || len(r.Data) != 0 {
		t.Errorf("after its end: %v, %v", r, err)
	}
}

func TestOOMEventsWait(t *testing.T) {
	raw := client(t, Start(t, Config{}).Path())
	c := agent.NewAgentServiceClient(raw)
	events := make(chan string, 1)
	go func() { e, _ := c.GetOOMEvent(t.Context(), &agent.GetOOMEventRequest{}); events <- e.GetContainerId() }()
	if _, err := agent.NewHealthClient(raw).Check(With(t.Context(), AskOOM, "fat"), &agent.CheckRequest{}); err != nil {
		t.Fatal(err)
	}
	if got := <-events; got != "fat" {
		t.Errorf("%q", got)
	}
}

// Any bytes under any name come back, and are recorded as they came.
func TestUnknownMethodsEcho(t *testing.T) {
	a := Start(t, Config{Record: true})
	c := client(t, a.Path())
	payload := []byte("\xff\xff\xff no protobuf")
	ctx, cancel := context.WithTimeout(With(t.Context(), "trace", "1", "trace", "2"), time.Minute)
	defer cancel()
	for _, service := range []string{"grpc.AgentService", "of.TheFuture"} {
		got, err := RawCall(ctx, c, service, "Brew", payload)
		if err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%s: %q, %v", service, got, err)
		}
		calls := a.Calls("/" + service + "/Brew")
		if len(calls) != 1 || !bytes.Equal(calls[0].Payload, payload) || calls[0].Timeout <= 0 || calls[0].Timeout > time.Minute {
			t.Fatalf("%s: %+v", service, calls)
		}
		if trace, _ := calls[0].Metadata.Get("trace"); len(trace) != 2 || trace[1] != "2" {
			t.Errorf("metadata %v", calls[0].Metadata)
		}
	}
}

func TestUnknownStreamsEcho(t *testing.T) {
	a := Start(t, Config{})
	c := client(t, a.Path())
	for end, want := range map[string]codes.Code{AskStatus + "=9": codes.FailedPrecondition, "": codes.OK} {
		s, err := c.NewStream(t.Context(), &ttrpc.StreamDesc{StreamingClient: true, StreamingServer: true}, "of.TheFuture", "Chat", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"one", "two", AskID + "=talk"} {
			if err := s.SendMsg(&Raw{[]byte(word)}); err != nil {
				t.Fatal(err)
			}
			var got Raw
			if err := s.RecvMsg(&got); err != nil || string(got.Bytes) != word {
				t.Fatalf("%q, %v", got.Bytes, err)
			}
		}
		if end != "" {
			err = s.SendMsg(&Raw{[]byte(end)})
		} else {
			err = s.CloseSend()
		}
		if err != nil {
			t.Fatal(err)
		}
		err = s.RecvMsg(&Raw{})
		if errors.Is(err, io.EOF) {
			err = nil
		}
		if status.Code(err) != want {
			t.Errorf("%q ends with %v", end, err)
		}
	}
	if got := a.Delivered(); got["talk"] != 2 {
		t.Errorf("%v", got)
	}
}

func TestAskedReplies(t *testing.T) {
	for _, plain := range []bool{false, true} {
		a := Start(t, Config{Plain: plain})
		c := client(t, a.Path())
		for _, n := range []string{"0", "1", "65536", "4194299"} {
			got, err := RawCall(With(t.Context(), AskReply, n), c, "grpc.Health", "Check", nil)
			if err != nil || strconv.Itoa(len(got)) != n {
				t.Errorf("plain %v: %d bytes for %s, %v", plain, len(got), n, err)
			}
		}
		_, err := RawCall(With(t.Context(), AskStatus, "7"), c, "grpc.AgentService", "CreateContainer", nil)
		st := status.Convert(err)
		if st.Code() != codes.PermissionDenied || len(st.Details()) != 2 {
			t.Fatalf("plain %v: %v", plain, st)
		}
		if v, ok := st.Details()[1].(*wrapperspb.StringValue); !ok || v.Value != "7" {
			t.Errorf("plain %v: %v", plain, st.Details())
		}
	}
}

func TestAPlainAgentKnowsNoOtherMethods(t *testing.T) {
	c := client(t, Start(t, Config{Plain: true}).Path())
	if _, err := RawCall(t.Context(), c, "of.TheFuture", "Brew", nil); status.Code(err) != codes.Unimplemented {
		t.Error(err)
	}
}

// What ttrpc's own server would end the connection for goes over the wire.
func TestRepliesBeyondTheLimitAreSent(t *testing.T) {
	c := client(t, Start(t, Config{}).Path())
	for range 2 {
		_, err := RawCall(With(t.Context(), AskReply, "4194300"), c, "grpc.Health", "Check", nil)
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("%v", err)
		}
		if _, err := RawCall(t.Context(), c, "grpc.Health", "Check", nil); err != nil {
			t.Errorf("the next call: %v", err)
		}
	}
}

func TestARequestBeyondTheLimitIsRefused(t *testing.T) {
	conn, err := net.Dial("unix", Start(t, Config{}).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	const size = 4<<20 + 1
	go func() { _, _ = conn.Write(append([]byte{0, 0x40, 0, 1, 0, 0, 0, 1, 1, 0}, make([]byte, size)...)) }()
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(conn, header); err != nil {
		t.Fatal(err)
	}
	if header[7] != 1 || header[8] != typeResponse {
		t.Errorf("% x", header)
	}
}

func TestAReplyIsCutShort(t *testing.T) {
	a := Start(t, Config{})
	for _, n := range []string{"0", "5", "10", "100"} {
		conn, err := net.Dial("unix", a.Path())
		if err != nil {
			t.Fatal(err)
		}
		wire := &counted{Conn: conn}
		c := ttrpc.NewClient(wire)
		_, err = RawCall(With(t.Context(), AskCut, n, AskReply, "4000"), c, "of.TheFuture", "Brew", nil)
		if err == nil {
			t.Errorf("%s: it answered", n)
		}
		if strconv.Itoa(wire.n) != n {
			t.Errorf("%d bytes came, want %s", wire.n, n)
		}
		c.Close()
	}
}

// counted counts the bytes that were read, by one goroutine until an error.
type counted struct {
	net.Conn
	n int
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n += n
	return n, err
}

func TestStreamIdsMustIncrease(t *testing.T) {
	conn, err := net.Dial("unix", Start(t, Config{}).Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, id := range []byte{3, 1} {
		if _, err := conn.Write([]byte{0, 0, 0, 0, 0, 0, 0, id, 1, 0}); err != nil {
			t.Fatal(err)
		}
		header := make([]byte, headerSize)
		if _, err := io.ReadFull(conn, header); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, header[3])
		if _, err := io.ReadFull(conn, body); err != nil {
			t.Fatal(err)
		}
		if refused := bytes.Contains(body, []byte("must increment")); refused != (id == 1) {
			t.Errorf("id %d: %q", id, body)
		}
	}
}

func TestDeliveriesAreCounted(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "journal")
	f, err := os.Create(journal)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a := Start(t, Config{Journal: f})
	c := client(t, a.Path())
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() { _, _ = RawCall(With(t.Context(), AskID, "twenty times"), c, "grpc.Health", "Check", nil) })
	}
	wg.Wait()
	_, _ = RawCall(With(t.Context(), AskID, "once"), c, "of.TheFuture", "Brew", nil)
	_, _ = RawCall(t.Context(), c, "grpc.Health", "Check", nil)
	if _, err := f.WriteString(`"cut off" /grpc.Health/Ch`); err != nil {
		t.Fatal(err)
	}
	for where, got := range map[string]map[string]int{"memory": a.Delivered(), "journal": read(t, journal)} {
		if len(got) != 2 || got["twenty times"] != 20 || got["once"] != 1 {
			t.Errorf("%s: %v", where, got)
		}
	}
}

func TestHangup(t *testing.T) {
	a := Start(t, Config{})
	c := client(t, a.Path())
	done := make(chan error, 1)
	go func() { _, err := RawCall(t.Context(), c, "grpc.AgentService", "GetOOMEvent", nil); done <- err }()
	if _, err := RawCall(t.Context(), c, "grpc.Health", "Check", nil); err != nil || a.Connections() != 1 {
		t.Fatal(err, a.Connections())
	}
	a.Hangup()
	if err := <-done; !errors.Is(err, ttrpc.ErrClosed) {
		t.Errorf("the call in progress: %v", err)
	}
	if _, err := RawCall(t.Context(), client(t, a.Path()), "grpc.Health", "Check", nil); err != nil {
		t.Errorf("a new connection: %v", err)
	}
}

func TestAProcessIsKilledAndReplaced(t *testing.T) {
	socket, journal := Socket(t), filepath.Join(t.TempDir(), "journal")
	cfg := ProcessConfig{Socket: socket, Journal: journal}
	first := StartProcess(t, cfg)
	c := client(t, socket)
	if _, err := RawCall(With(t.Context(), AskID, "a"), c, "grpc.Health", "Check", nil); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := RawCall(With(t.Context(), AskID, "b"), c, "grpc.AgentService", "WaitProcess", nil)
		done <- err
	}()
	for read(t, journal)["b"] == 0 {
		select {
		case err := <-done:
			t.Fatal("WaitProcess came back", err)
		case <-time.After(time.Millisecond):
		}
	}
	first.Kill()
	if err := <-done; !errors.Is(err, ttrpc.ErrClosed) {
		t.Errorf("the call in progress: %v", err)
	}
	cfg.Plain = true
	second := StartProcess(t, cfg)
	if _, err := RawCall(With(t.Context(), AskID, "a"), client(t, socket), "grpc.Health", "Check", nil); err != nil {
		t.Fatal(err)
	}
	if got := read(t, journal); got["a"] != 2 || got["b"] != 1 {
		t.Errorf("%v", got)
	}
	if err := second.Stop(); err != nil {
		t.Error(err)
	}
}

// As in a unit: no parent to watch, the end comes by a signal.
func TestAProcessOfItsOwnEndsBySignal(t *testing.T) {
	socket := Socket(t)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), socketEnv+"="+socket)
	if err := cmd.Start(); err != nil { // standard input is /dev/null
		t.Fatal(err)
	}
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			conn.Close()
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := RawCall(t.Context(), client(t, socket), "grpc.Health", "Check", nil); err != nil {
		t.Error(err)
	}
	if err := errors.Join(cmd.Process.Signal(syscall.SIGTERM), cmd.Wait()); err != nil {
		t.Error(err)
	}
}

func read(t *testing.T, journal string) map[string]int {
	t.Helper()
	m, err := ReadJournal(journal)
	if err != nil {
		t.Fatal(err)
	}
	return m
}
