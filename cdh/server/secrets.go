package server

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/sealpod/sealpod/cdh/internal/confined"
	"github.com/sealpod/sealpod/cdh/keywrap"
	"github.com/sealpod/sealpod/cdh/mount"
	"github.com/sealpod/sealpod/kbs"
	"github.com/sealpod/sealpod/podvm"
)

// maxKeyFile caps, in bytes, a volume key that is a file: what cryptsetup takes.
const maxKeyFile = 8 << 20

// Resource returns the resource at a kbs:// URI. The caller wipes it.
func (h *Hub) Resource(ctx context.Context, uri string) (podvm.Secret, error) {
	return h.resources.Resource(ctx, uri)
}

// UnwrapKey implements imagepull.KeyUnwrapper without a detour by the socket.
func (h *Hub) UnwrapKey(ctx context.Context, packet []byte) (podvm.Secret, error) {
	return keywrap.Unwrap(ctx, h.keys(), packet)
}

func (h *Hub) keys() keywrap.Keys { return keywrap.Keys{Resources: h.resources, KMS: h.kms} }

// Unseal returns the secret in a sealed secret. The caller wipes it. Errors:
// those of package secret, with a podvm.Cause.
func (h *Hub) Unseal(ctx context.Context, sealed []byte) (podvm.Secret, error) {
	return h.secrets.Unseal(ctx, sealed)
}

// Mount fulfils a SecureMount request. Errors: those of package mount.
func (h *Hub) Mount(ctx context.Context, req mount.Request) error { return h.mounts.Mount(ctx, req) }

// Key implements mount.Keys.
// Source: guest-components confidential-data-hub/hub/src/storage/volume_type/blockdevice
// at 8246e5e.
func (h *Hub) Key(ctx context.Context, source string) (podvm.Secret, error) {
	if strings.HasPrefix(source, "sealed.") {
		return h.Unseal(ctx, []byte(source))
	}
	if path, ok := strings.CutPrefix(source, "file://"); ok {
		return h.keyFile(path)
	}
	if _, err := kbs.ParseURI(source); err != nil {
		return nil, podvm.Explain(fmt.Errorf("finding the key: %w", err),
			"the key is neither a sealed secret nor a kbs:// or file:// URI")
	}
	return h.Resource(ctx, source)
}

// keyFile reads a key from a file as it is, line ends and all.
func (h *Hub) keyFile(path string) (podvm.Secret, error) {
	if filepath.IsAbs(path) {
		path = h.host.Path(path)
	}
	real, err := filepath.EvalSymlinks(path)
	var key []byte
	if err == nil {
		key, err = confined.Read(filepath.Dir(real), filepath.Base(real), maxKeyFile)
	}
	if err != nil {
		return nil, podvm.Explain(fmt.Errorf("reading the key file: %w", err), "the key file cannot be read")
	}
	return key, nil
}
