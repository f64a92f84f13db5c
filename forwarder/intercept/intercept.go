// Package intercept changes the three calls to kata-agent that mean something else
// in a pod VM than in a VM on the worker node: CreateContainer, CreateSandbox and
// DestroySandbox. All others pass as they are.
//
// Data path: forwarder/relay hands over the bytes of a request message, this
// package gives the agent's version of it; cloud volumes are attached by
// forwarder/volume.
//
// Trust: the requests come from the worker node and are hostile. The agent's
// policy judges them after the change; what happens here happens before, so it is
// kept to what a hostile node gains nothing by: files and directories are made in
// the runtime's own places only, and empty; volumes are attached as the owner's
// volume.Rules have it, under names that stay theirs. Fields that are not changed, known or
// not, reach the agent with the values they had.
//
// Source: cloud-api-adaptor
// src/cloud-api-adaptor/pkg/forwarder/interceptor/interceptor.go at fbdde756.
package intercept

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/relay"
	"github.com/sealpod/sealpod/forwarder/volume"
	"github.com/sealpod/sealpod/podvm"
)

// Volumes attaches cloud volumes. It is called by several requests at a time.
type Volumes interface {
	// Attach returns the directory v is mounted on. It may be called again for a
	// volume that is attached.
	Attach(ctx context.Context, v volume.Volume) (dir string, err error)
	// DetachAll takes off every volume and logs what fails.
	DetachAll(ctx context.Context)
}

// Config says how requests are changed.
type Config struct {
	// Namespace is the path of the pod's network namespace, as the agent sees it.
	Namespace string
	Volumes   Volumes
	// Host is where the sources of mounts are.
	Host podvm.Host
	Log  *slog.Logger // nil is slog.Default()
}

// Interceptor changes requests. It is safe for concurrent use and keeps nothing
// from one to the next.
type Interceptor struct {
	namespace string
	volumes   Volumes
	host      podvm.Host
	log       *slog.Logger
}

// New returns an Interceptor.
func New(cfg Config) *Interceptor {
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Interceptor{cfg.Namespace, cfg.Volumes, cfg.Host, cfg.Log}
}

// Methods returns what changes the requests, by method.
func (i *Interceptor) Methods() map[string]relay.Method {
	return map[string]relay.Method{
		"/grpc.AgentService/CreateContainer": i.createContainer,
		"/grpc.AgentService/CreateSandbox":   i.createSandbox,
		"/grpc.AgentService/DestroySandbox":  i.destroySandbox,
	}
}

// createSandbox takes the DNS servers of the worker node away, so that the agent
// leaves the VM's resolv.conf, with those of its own network, alone.
func (i *Interceptor) createSandbox(_ context.Context, payload []byte) ([]byte, error) {
	var req agent.CreateSandboxRequest
	if err := decode(payload, &req, sandboxItems); err != nil {
		return nil, err
	}
	if len(req.Dns) == 0 {
		return payload, nil
	}
	i.log.Info("Sandbox keeps the VM's resolv.conf", "sandbox", podvm.Printable(req.SandboxId, 128), "dropped", len(req.Dns))
	req.Dns = nil
	return proto.Marshal(&req)
}

// detachTimeout is half of what both runtimes leave DestroySandbox: a volume that
// does not let go must not keep the agent from being told.
const detachTimeout = 30 * time.Second

// destroySandbox takes off the cloud volumes. Like upstream, it goes on whatever
// comes of that.
func (i *Interceptor) destroySandbox(ctx context.Context, payload []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	i.volumes.DetachAll(ctx)
	return payload, nil
}

// decode reads a request with at most maxItems items.
func decode(payload []byte, m proto.Message, items fields) error {
	n, err := items.count(payload)
	if err == nil && n > maxItems {
		return status.Errorf(codes.InvalidArgument, "request with more than %d mounts, annotations and the like", maxItems)
	}
	if err == nil {
		err = proto.Unmarshal(payload, m)
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "malformed %s", m.ProtoReflect().Descriptor().Name())
	}
	return nil
}
