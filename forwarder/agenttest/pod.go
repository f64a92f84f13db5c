package agenttest

import (
	"context"
	"sync"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/sealpod/sealpod/api/agent"
)

// pod is the agent's service: processes that are there as soon as somebody
// speaks of them, and copy their standard input to their standard output.
type pod struct {
	guest     *Guest
	mu        sync.Mutex
	secrets   map[string]string   // by container, as SecretAnnotation has them
	processes map[string]*process // by container and exec id
	oom       chan string
}

type process struct {
	mu     sync.Mutex
	out    []byte
	closed bool
	more   chan struct{} // closed, and made anew, when out or closed changes
	exited chan struct{}
	status int32
}

func (p *pod) process(container, exec string) *process {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := container + "\x00" + exec
	if p.processes[key] == nil {
		p.processes[key] = &process{more: make(chan struct{}), exited: make(chan struct{})}
	}
	return p.processes[key]
}

// change changes p and wakes its readers.
func (p *process) change(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.more)
	p.more = make(chan struct{})
}

func (p *pod) CreateContainer(ctx context.Context, r *agent.CreateContainerRequest) (*emptypb.Empty, error) {
	if p.guest == nil {
		return &emptypb.Empty{}, nil
	}
	p.mu.Lock()
	p.secrets[r.ContainerId] = r.GetOCI().GetAnnotations()[SecretAnnotation]
	p.mu.Unlock()
	return &emptypb.Empty{}, p.guest.pull(ctx, r)
}

func (p *pod) StartContainer(ctx context.Context, r *agent.StartContainerRequest) (*emptypb.Empty, error) {
	p.mu.Lock()
	secret := p.secrets[r.ContainerId]
	p.mu.Unlock()
	if secret == "" {
		return &emptypb.Empty{}, nil
	}
	return &emptypb.Empty{}, p.guest.fetch(ctx, r.ContainerId, secret)
}

func (p *pod) RemoveContainer(context.Context, *agent.RemoveContainerRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (p *pod) CreateSandbox(context.Context, *agent.CreateSandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func (p *pod) DestroySandbox(context.Context, *agent.DestroySandboxRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

// SignalProcess ends a process, whatever the signal.
func (p *pod) SignalProcess(_ context.Context, r *agent.SignalProcessRequest) (*emptypb.Empty, error) {
	proc := p.process(r.ContainerId, r.ExecId)
	proc.change(func() {
		if !proc.closed {
			proc.closed, proc.status = true, 128+int32(r.Signal&0x7f)
			close(proc.exited)
		}
	})
	return &emptypb.Empty{}, nil
}

func (p *pod) WaitProcess(ctx context.Context, r *agent.WaitProcessRequest) (*agent.WaitProcessResponse, error) {
	proc := p.process(r.ContainerId, r.ExecId)
	select {
	case <-proc.exited:
		return &agent.WaitProcessResponse{Status: proc.status}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (p *pod) WriteStdin(_ context.Context, r *agent.WriteStreamRequest) (*agent.WriteStreamResponse, error) {
	proc := p.process(r.ContainerId, r.ExecId)
	proc.change(func() { proc.out = append(proc.out, r.Data...) })
	return &agent.WriteStreamResponse{Len: uint32(len(r.Data))}, nil
}

// CloseStdin ends a process with status 0.
func (p *pod) CloseStdin(_ context.Context, r *agent.CloseStdinRequest) (*emptypb.Empty, error) {
	proc := p.process(r.ContainerId, r.ExecId)
	proc.change(func() {
		if !proc.closed {
			proc.closed = true
			close(proc.exited)
		}
	})
	return &emptypb.Empty{}, nil
}

// ReadStdout returns at most Len bytes, none at the end of the stream.
// Source: kata-containers src/agent/src/rpc.rs at 7c6ba40c.
func (p *pod) ReadStdout(ctx context.Context, r *agent.ReadStreamRequest) (*agent.ReadStreamResponse, error) {
	proc := p.process(r.ContainerId, r.ExecId)
	for {
		proc.mu.Lock()
		if n := min(len(proc.out), int(r.Len)); n > 0 {
			data := proc.out[:n:n]
			proc.out = proc.out[n:]
			proc.mu.Unlock()
			return &agent.ReadStreamResponse{Data: data}, nil
		}
		closed, more := proc.closed, proc.more
		proc.mu.Unlock()
		if closed {
			return &agent.ReadStreamResponse{}, nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
}

func (p *pod) GetOOMEvent(ctx context.Context, _ *agent.GetOOMEventRequest) (*agent.OOMEvent, error) {
	select {
	case id := <-p.oom:
		return &agent.OOMEvent{ContainerId: id}, nil
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

type health struct{}

func (health) Check(context.Context, *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{Status: agent.HealthCheckResponse_SERVING}, nil
}

func (health) Version(context.Context, *agent.CheckRequest) (*agent.VersionCheckResponse, error) {
	return &agent.VersionCheckResponse{GrpcVersion: "0.0.1", AgentVersion: "agenttest"}, nil
}
