package intercept

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/volume"
	"github.com/sealpod/sealpod/podvm"
)

// Annotations that cloud-api-adaptor puts on a container.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/util/cloud.go and
// pkg/adaptor/proxy/service.go at fbdde756.
const (
	cloudVolumes = "io.confidentialcontainers.org.cloud_volumes"
	targetPaths  = "io.confidentialcontainers.org.peerpodvolumes.target_path"
)

// createContainer puts a container into the pod's network namespace, and its
// volumes where its mounts look for them.
//
// Errors: InvalidArgument for a request that is malformed or lacks its OCI or Linux
// part; volume.ErrAnnotation; what Volumes says; errNotMounted; the cause of ctx.
func (i *Interceptor) createContainer(ctx context.Context, payload []byte) ([]byte, error) {
	var req agent.CreateContainerRequest
	if err := decode(payload, &req, containerItems); err != nil {
		return nil, err
	}
	spec := req.OCI
	if spec == nil || spec.Linux == nil {
		return nil, status.Error(codes.InvalidArgument, "CreateContainerRequest without an OCI spec for Linux")
	}
	start, log := time.Now(), i.log.With("container", podvm.Printable(req.ContainerId, 128))
	i.joinNetwork(spec.Linux)
	if err := i.attach(ctx, log, spec); err != nil {
		return nil, err
	}
	made := i.sources(&req)
	defer func() { made.report(log) }()
	awaited := awaited(spec)
	for _, m := range spec.Mounts {
		if m.Type == "bind" {
			made.provide(m)
		}
		if awaited[m.Source] {
			if err := i.wait(ctx, m.Source); err != nil {
				return nil, err
			}
		}
	}
	log.Info("Container prepared", "mounts", len(spec.Mounts), "dur", time.Since(start))
	return proto.Marshal(&req)
}

// joinNetwork leaves one network namespace, the pod's. Upstream appends it to those
// in the request, which policies made by genpolicy refuse; the runtimes send none.
// The agent takes "net" for "network", as oci-spec does (youki-dev/oci-spec-rs
// src/runtime/linux.rs at 8cab6c77).
func (i *Interceptor) joinNetwork(linux *agent.Linux) {
	linux.Namespaces = slices.DeleteFunc(linux.Namespaces, isNetwork)
	linux.Namespaces = append(linux.Namespaces, &agent.LinuxNamespace{Type: "network", Path: i.namespace})
}

func isNetwork(n *agent.LinuxNamespace) bool { return n.Type == "network" || n.Type == "net" }

// attach attaches the cloud volumes of a container and points its mounts at them.
// Those that are attached when one fails stay, for the next try or DestroySandbox.
func (i *Interceptor) attach(ctx context.Context, log *slog.Logger, spec *agent.Spec) error {
	volumes, err := volume.Parse(spec.Annotations[cloudVolumes])
	if err != nil {
		return err
	}
	for _, v := range volumes {
		dir, err := i.volumes.Attach(ctx, v)
		if err != nil {
			return err
		}
		found := false
		for _, m := range spec.Mounts {
			// Every one: a second mount on the same place would hide the volume.
			if m.Destination == v.MountPoint {
				m.Source, m.Type, found = dir, "bind", true
			}
		}
		if !found {
			log.Warn("Cloud volume is mounted nowhere in the container", "volume", v.Name, "mount_point", podvm.Printable(v.MountPoint, 256))
		}
	}
	return nil
}

// awaited returns which sources of mounts the annotation of target paths, a list
// with commas, names.
func awaited(spec *agent.Spec) map[string]bool {
	listed := map[string]bool{}
	for _, m := range spec.Mounts {
		listed[m.Source] = false
	}
	for path := range strings.SplitSeq(spec.Annotations[targetPaths], ",") {
		path = strings.TrimSpace(path)
		if _, ok := listed[path]; ok && path != "" {
			listed[path] = true
		}
	}
	return listed
}
