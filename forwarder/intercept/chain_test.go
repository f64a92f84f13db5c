package intercept

import (
	"bytes"
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/forwarder/relay"
	"github.com/sealpod/sealpod/forwarder/volume"
)

const createContainer = "/grpc.AgentService/CreateContainer"

// through returns a client whose calls go through a relay, with what p changes, to
// the agent at path.
func (p pod) through(t *testing.T, path string) *ttrpc.Client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	host, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	r := relay.New(relay.Config{Methods: p.Methods(), Dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}})
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- r.Serve(ctx, host) }()
	c := ttrpc.NewClient(conn)
	t.Cleanup(func() { c.Close(); cancel(); <-served })
	return c
}

// held is volumes whose Attach waits.
type held struct {
	volumes
	entered, release chan struct{}
}

func (h *held) Attach(ctx context.Context, v volume.Volume) (string, error) {
	h.entered <- struct{}{}
	select {
	case <-h.release:
		return h.volumes.Attach(ctx, v)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func newHeld(p pod) *held {
	h := &held{entered: make(chan struct{}, 8), release: make(chan struct{})}
	p.volumes = h
	return h
}

func withVolume() *agent.CreateContainerRequest {
	req := container(bind("/nowhere", "/data"))
	req.OCI.Annotations[cloudVolumes] = `{"v":{"mount_point":"/data","lun":"0"}}`
	return req
}

// The agent gets the changed request, with what is left of the caller's time, its
// metadata and the fields that nobody here knows; calls that come after it need not
// wait for it.
func TestACallIsChangedOnItsWay(t *testing.T) {
	p, a := newPod(t), agenttest.Start(t, agenttest.Config{Record: true})
	h := newHeld(p)
	c := p.through(t, a.Path())
	req := withVolume()
	req.ProtoReflect().SetUnknown(encode2(200, []byte("\xff")))
	req.OCI.ProtoReflect().SetUnknown(encode2(2, []byte("a process")))

	const timeout = time.Minute
	ctx, cancel := context.WithTimeout(agenttest.With(t.Context(), "trace", "42"), timeout)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := agent.NewAgentServiceClient(c).CreateContainer(ctx, req)
		done <- err
	}()
	<-h.entered
	start := time.Now()
	if _, err := agent.NewHealthClient(c).Check(t.Context(), &agent.CheckRequest{}); err != nil {
		t.Fatalf("a call behind it: %v", err)
	}
	if len(a.Calls(createContainer)) > 0 {
		t.Fatal("the agent got it before its volumes were there")
	}
	<-time.After(50 * time.Millisecond)
	spent := time.Since(start)
	close(h.release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	calls := a.Calls(createContainer)
	if len(calls) != 1 {
		t.Fatalf("%d calls", len(calls))
	}
	var got agent.CreateContainerRequest
	if err := proto.Unmarshal(calls[0].Payload, &got); err != nil {
		t.Fatal(err)
	}
	want := proto.Clone(req).(*agent.CreateContainerRequest)
	want.OCI.Mounts[0].Source = volume.Base + "/v"
	want.OCI.Linux.Namespaces = []*agent.LinuxNamespace{{Type: "network", Path: netns}}
	if !proto.Equal(&got, want) {
		t.Errorf("got %v, want %v", &got, want)
	}
	if left := calls[0].Timeout; left <= 0 || left > timeout-spent {
		t.Errorf("the agent has %v, and %v of %v were spent", left, spent, timeout)
	}
	if trace, _ := calls[0].Metadata.Get("trace"); len(trace) != 1 || trace[0] != "42" {
		t.Errorf("metadata %v", calls[0].Metadata)
	}
}

func TestTheRestOfASandboxesLife(t *testing.T) {
	p, a := newPod(t), agenttest.Start(t, agenttest.Config{Record: true})
	c := p.through(t, a.Path())
	service := agent.NewAgentServiceClient(c)
	if _, err := service.CreateSandbox(t.Context(), &agent.CreateSandboxRequest{SandboxId: "s", Dns: []string{"nameserver 10.0.0.10"}}); err != nil {
		t.Fatal(err)
	}
	payload := []byte("\xff no protobuf")
	for _, method := range []string{"SetPolicy", "OfTheFuture"} {
		if got, err := agenttest.RawCall(t.Context(), c, "grpc.AgentService", method, payload); err != nil || !bytes.Equal(got, payload) {
			t.Errorf("%s: %q, %v", method, got, err)
		}
	}
	_, err := service.CreateContainer(agenttest.With(t.Context(), agenttest.AskStatus, "7"), container())
	if st := status.Convert(err); st.Code() != codes.PermissionDenied || len(st.Details()) != 2 {
		t.Errorf("the agent's refusal: %v", st)
	}
	if _, err := service.DestroySandbox(t.Context(), &agent.DestroySandboxRequest{}); err != nil {
		t.Fatal(err)
	}
	if p.vols.detached != 1 {
		t.Errorf("volumes were detached %d times", p.vols.detached)
	}
	var sandbox agent.CreateSandboxRequest
	if err := proto.Unmarshal(a.Calls("/grpc.AgentService/CreateSandbox")[0].Payload, &sandbox); err != nil || len(sandbox.Dns) > 0 || sandbox.SandboxId != "s" {
		t.Errorf("%v, %v", &sandbox, err)
	}
}

// None of these costs the connection, or reaches the agent.
func TestRefusalsReachTheCaller(t *testing.T) {
	p, a := newPod(t), agenttest.Start(t, agenttest.Config{Record: true})
	c := p.through(t, a.Path())
	service := agent.NewAgentServiceClient(c)
	corrupt, large := container(), container()
	corrupt.OCI.Annotations[cloudVolumes] = "{"
	frame := &ttrpc.Request{Service: "grpc.AgentService", Method: "CreateContainer"}
	large.OCI.Annotations["pad"] = strings.Repeat("x", 4<<20-proto.Size(large)-100)
	for frame.Payload = encode(t, large); proto.Size(frame) < 4<<20; frame.Payload = encode(t, large) {
		large.OCI.Annotations["pad"] += strings.Repeat("x", 4<<20-proto.Size(frame)) // fits to the byte
	}
	if n := proto.Size(frame); n != 4<<20 {
		t.Fatalf("a frame of %d bytes", n)
	}
	for name, tt := range map[string]struct {
		req  *agent.CreateContainerRequest
		code codes.Code
		text string
	}{
		"no OCI":          {&agent.CreateContainerRequest{}, codes.InvalidArgument, "without an OCI spec"},
		"corrupt volumes": {corrupt, codes.Unknown, "corrupt cloud_volumes annotation"},
		"grown too large": {large, codes.ResourceExhausted, "exceed maximum message size"},
	} {
		_, err := service.CreateContainer(t.Context(), tt.req)
		if st := status.Convert(err); st.Code() != tt.code || !strings.Contains(st.Message(), tt.text) {
			t.Errorf("%s: %v", name, err)
		}
	}
	p.vols.fail = status.Error(codes.PermissionDenied, "no key for you")
	if _, err := service.CreateContainer(t.Context(), withVolume()); status.Code(err) != codes.PermissionDenied {
		t.Errorf("of the data hub: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := service.CreateContainer(ctx, waited(target)); status.Code(err) != codes.DeadlineExceeded && !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	if got := a.Calls(); len(got) > 0 {
		t.Errorf("the agent got %d calls", len(got))
	}
	if _, err := service.CreateContainer(t.Context(), container()); err != nil {
		t.Errorf("a good one after that: %v", err)
	}
}

// An agent that is killed while a call is prepared: the next one gets it, once.
func TestTheAgentIsReplacedMeanwhile(t *testing.T) {
	p := newPod(t)
	h := newHeld(p)
	cfg := agenttest.ProcessConfig{Socket: agenttest.Socket(t), Journal: filepath.Join(t.TempDir(), "journal")}
	first := agenttest.StartProcess(t, cfg)
	c := p.through(t, cfg.Socket)
	if _, err := agent.NewHealthClient(c).Check(t.Context(), &agent.CheckRequest{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(agenttest.With(t.Context(), agenttest.AskID, "create"), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		_, err := agent.NewAgentServiceClient(c).CreateContainer(ctx, withVolume())
		done <- err
	}()
	<-h.entered
	first.Kill()
	close(h.release)
	agenttest.StartProcess(t, cfg)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got, err := agenttest.ReadJournal(cfg.Journal); err != nil || got["create"] != 1 {
		t.Errorf("delivered %v, %v", got, err)
	}
}
