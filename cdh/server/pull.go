package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// The measurement of a pulled image.
// Source: guest-components confidential-data-hub/hub/src/hub.rs at 8246e5e.
const (
	measureDomain    = "github.com/confidential-containers"
	measureOperation = "PullImage"
	measureTimeout   = 10 * time.Second
)

type pullService struct{ h *Hub }

// PullImage implements api.ImagePullService. Pulls run side by side. An image
// that cannot be measured where measuring is possible is taken back.
func (s pullService) PullImage(ctx context.Context, req *datahub.ImagePullRequest) (*datahub.ImagePullResponse, error) {
	digest, text, err := s.h.pull(ctx, req.GetImageUrl(), req.GetBundlePath())
	s.h.count.call("PullImage", err)
	if err != nil {
		return nil, fail(ctx, text, err)
	}
	return &datahub.ImagePullResponse{ManifestDigest: digest}, nil
}

// Pull makes a bundle of an image, measures it and returns its digest, as the
// service does. Errors carry a podvm.Cause.
func (h *Hub) Pull(ctx context.Context, image, bundle string) (string, error) {
	digest, _, err := h.pull(ctx, image, bundle)
	return digest, err
}

// pull is Pull; text is what the service says before the cause of an error.
func (h *Hub) pull(ctx context.Context, image, bundle string) (digest, text string, err error) {
	puller, err := h.client()
	if err != nil {
		return "", textClient, explained(err, "the [image] configuration is not usable")
	}
	start := time.Now()
	if digest, err = puller.Pull(ctx, image, bundle); err != nil {
		return "", textPull, explained(err, "the image could not be pulled")
	}
	if err := h.measure(ctx, image, digest); err != nil {
		return "", textMeasure, errors.Join(err, remove(ctx, puller, bundle))
	}
	rpc.Log(ctx).Info("Image in place", "image", podvm.Printable(image, 300), "digest", digest, "dur", time.Since(start))
	return digest, "", nil
}

// DryRun tells what a pull of image would meet, see imagepull.Puller.DryRun.
func (h *Hub) DryRun(ctx context.Context, image string) (imagepull.Report, error) {
	puller, err := h.client()
	if err != nil {
		return imagepull.Report{}, explained(err, "the [image] configuration is not usable")
	}
	return puller.DryRun(ctx, image)
}

// remove takes a pulled image back, also when the caller has gone.
func remove(ctx context.Context, p Puller, bundle string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), measureTimeout)
	defer cancel()
	if err := p.Remove(ctx, bundle); err != nil {
		return fmt.Errorf("taking the image back: %w", err)
	}
	return nil
}

// explained makes sure that err carries a cause.
func explained(err error, otherwise string) error {
	if podvm.Cause(err) != "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return podvm.Explain(err, otherwise)
}

// measure extends the runtime measurement by the image, as requested, and the
// digest it turned out to have. A guest without an attestation agent measures
// nothing; whether there is one is looked up each time. Where there was one it
// is waited for: while it starts again no image gets by unmeasured.
func (h *Hub) measure(ctx context.Context, image, digest string) error {
	if !h.agentThere() {
		rpc.Log(ctx).Warn("Image not measured: no attestation agent", "socket", h.aaPath)
		return nil
	}
	content, err := measuredContent(image, digest)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()
	var result attestationagent.RuntimeMeasurementResult
	// Repeated once if the agent goes away meanwhile: one event too many is
	// in the log for all to see, one too few is not.
	err = h.aa.Do(ctx, func(c *ttrpc.Client) error {
		resp, err := attestationagent.NewAttestationAgentServiceClient(c).ExtendRuntimeMeasurement(ctx,
			&attestationagent.ExtendRuntimeMeasurementRequest{Domain: measureDomain, Operation: measureOperation, Content: content})
		result = resp.GetResult()
		return err
	})
	switch {
	case errors.Is(err, rpc.ErrPeerAbsent):
		return podvm.Explain(fmt.Errorf("measuring %s: %w", digest, err), "attestation agent not reachable at "+h.aaPath)
	case err != nil:
		return podvm.Explain(fmt.Errorf("measuring %s: %w", digest, err), "the image could not be measured")
	case result != attestationagent.RuntimeMeasurementResult_OK:
		rpc.Log(ctx).Warn("Image not measured", "digest", digest, "result", result.String())
	}
	return nil
}

// agentThere tells whether the agent's socket is there, or was once.
func (h *Hub) agentThere() bool {
	if _, err := os.Stat(h.aaPath); !errors.Is(err, fs.ErrNotExist) {
		h.aaSeen.Store(true)
	}
	return h.aaSeen.Load()
}

// measuredContent is the event's content. The space after the comma is part of
// what verifiers hash.
func measuredContent(image, digest string) (string, error) {
	quoted := [2]string{image, digest}
	for i, s := range quoted {
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(s); err != nil {
			return "", fmt.Errorf("encoding the event: %w", err)
		}
		quoted[i] = string(bytes.TrimRight(b.Bytes(), "\n"))
	}
	return fmt.Sprintf(`{"image":%s, "digest":%s}`, quoted[0], quoted[1]), nil
}
