package server

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/cdh/keywrap"
	"github.com/sealpod/sealpod/cdh/mount"
	"github.com/sealpod/sealpod/cdh/resource"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Texts callers match on; the cause and the request id follow.
// Source: guest-components confidential-data-hub/hub/src/{error.rs,bin/ttrpc_server}
// at 8246e5e.
const (
	textKBC         = "[CDH] [ERROR]: kbs client initialization failed"
	textResource    = "[CDH] [ERROR]: Get Resource failed"
	textUnwrap      = "[CDH] [ERROR]: Decrypt Image (UnwrapKey) failed"
	textUnwrapParse = "[ERROR] UnwrapKey Parse request failed"
	textUnseal      = "[CDH] [ERROR]: Unseal Secret failed"
	textMount       = "[CDH] [ERROR]: Secure Mount failed"
	textPull        = "[CDH] [ERROR]: Image Pull error"
	textClient      = "[CDH] [ERROR]: Image Client error"
	textMeasure     = "[CDH] [ERROR]: Attestation Agent client error"
)

// maxReply caps what an answer carries: a ttrpc message of more than 4 MiB
// breaks the connection, with every other call on it.
const maxReply = 4<<20 - 1024

// fail ends a call with upstream's code for every failure.
func fail(ctx context.Context, text string, err error) error {
	if podvm.Cause(err) == "" {
		switch {
		case errors.Is(err, context.Canceled):
			err = podvm.Explain(err, "the caller gave up")
		case errors.Is(err, context.DeadlineExceeded):
			err = podvm.Explain(err, "not done in time")
		}
	}
	return rpc.Fail(ctx, codes.Internal, text, err)
}

type resourceService struct{ h *Hub }

// GetResource implements api.GetResourceService.
func (s resourceService) GetResource(ctx context.Context, req *datahub.GetResourceRequest) (*datahub.GetResourceResponse, error) {
	content, err := s.h.resources.Resource(ctx, req.GetResourcePath())
	err = fits(content, err)
	s.h.count.call("GetResource", err)
	switch {
	case errors.Is(err, resource.ErrInit), errors.Is(err, resource.ErrUnknown):
		return nil, fail(ctx, textKBC, rpc.Because(err, why(err)))
	case err != nil:
		return nil, fail(ctx, textResource, rpc.Because(err, why(err)))
	}
	return &datahub.GetResourceResponse{Resource: content}, nil
}

// why says in a word why there is no resource, for who asks by HTTP.
func why(err error) string {
	switch {
	case errors.Is(err, resource.ErrNotFound):
		return rpc.NotFound
	case errors.Is(err, rpc.ErrPeerAbsent), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ttrpc.ErrClosed),
		status.Code(err) == codes.DeadlineExceeded:
		return rpc.Unreachable
	}
	return kbs.Why(err)
}

// fits returns err, or that content, which it wipes then, is too large for a
// message.
func fits(content podvm.Secret, err error) error {
	if err != nil || len(content) <= maxReply {
		return err
	}
	content.Wipe()
	return podvm.Explain(fmt.Errorf("answering with %d bytes: %w", len(content), podvm.ErrTooLarge),
		"the content is larger than 4 MiB")
}

// keyService says parse before why a request cannot be read.
type keyService struct {
	h     *Hub
	parse string
}

// UnWrapKey implements keyprovider.KeyProviderService.
func (s keyService) UnWrapKey(ctx context.Context, req *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	out, err := keywrap.UnwrapRequest(ctx, s.h.keys(), req.GetKeyProviderKeyWrapProtocolInput())
	s.h.count.call("UnWrapKey", err)
	switch {
	case errors.Is(err, keywrap.ErrRequest):
		return nil, fail(ctx, s.parse, err)
	case err != nil:
		return nil, fail(ctx, textUnwrap, err)
	}
	return &keyprovider.KeyProviderKeyWrapProtocolOutput{KeyProviderKeyWrapProtocolOutput: out}, nil
}

// WrapKey implements keyprovider.KeyProviderService: a guest wraps no keys.
func (keyService) WrapKey(context.Context, *keyprovider.KeyProviderKeyWrapProtocolInput) (*keyprovider.KeyProviderKeyWrapProtocolOutput, error) {
	return nil, status.Error(codes.NotFound, "/keyprovider.KeyProviderService/WrapKey is not supported")
}

type secretService struct{ h *Hub }

// UnsealSecret implements api.SealedSecretService.
func (s secretService) UnsealSecret(ctx context.Context, req *datahub.UnsealSecretInput) (*datahub.UnsealSecretOutput, error) {
	plain, err := s.h.Unseal(ctx, req.GetSecret())
	err = fits(plain, err)
	s.h.count.call("UnsealSecret", err)
	if err != nil {
		return nil, fail(ctx, textUnseal, err)
	}
	return &datahub.UnsealSecretOutput{Plaintext: plain}, nil
}

type mountService struct{ h *Hub }

// SecureMount implements api.SecureMountService.
func (s mountService) SecureMount(ctx context.Context, req *datahub.SecureMountRequest) (*datahub.SecureMountResponse, error) {
	err := s.h.Mount(ctx, mount.Request{
		VolumeType: req.GetVolumeType(), Options: req.GetOptions(), Flags: req.GetFlags(), MountPoint: req.GetMountPoint(),
	})
	s.h.count.call("SecureMount", err)
	if err != nil {
		return nil, fail(ctx, textMount, err)
	}
	return &datahub.SecureMountResponse{}, nil
}
