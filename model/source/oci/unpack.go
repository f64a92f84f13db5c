package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sealpod/sealpod/imagepull/layer"
	"github.com/sealpod/sealpod/imagepull/registry"
	"github.com/sealpod/sealpod/model/key"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// Folders in that of the model, while it is not there yet. A killed run leaves
// them, and the next one goes on with the layers that are complete.
const (
	layersDir = ".oci-layers.part" // has each complete layer under its digest
	mergedDir = ".oci-merged.part" // what is put together of them, and of no further use
)

// Unpack implements source.Unpacker. Layers come one after another, each over
// several connections where that helps; files are moved, not copied, so that the
// model needs its room once and the layers' other content a little more.
func (s *Source) Unpack(ctx context.Context, dir string, keys source.Keys) error {
	repo, image, err := s.resolve(ctx)
	if err != nil {
		return err
	}
	layers, merged := filepath.Join(dir, layersDir), filepath.Join(dir, mergedDir)
	if err := errors.Join(os.RemoveAll(merged), os.MkdirAll(layers, 0o700)); err != nil {
		return classify(ctx, fmt.Errorf("making room for layers: %w", err))
	}
	var trees []string
	for i, l := range image.Layers {
		tree, err := s.layer(ctx, repo, l, layers, keys)
		if err != nil {
			return classify(ctx, fmt.Errorf("layer %d of %d: %w", i+1, len(image.Layers), err))
		}
		trees = append(trees, filepath.Base(tree))
	}
	// From here on layers lose what is moved, and are not to be continued with.
	if err := os.Rename(layers, merged); err != nil {
		return fmt.Errorf("putting layers together: %w", err)
	}
	for i, name := range trees {
		trees[i] = filepath.Join(merged, name)
	}
	model := filepath.Join(merged, "model")
	if err := merge(ctx, trees, model); err != nil {
		return classify(ctx, fmt.Errorf("putting layers together: %w", err))
	}
	if err := publish(model, dir); err != nil {
		return fmt.Errorf("putting the model in its place: %w", err)
	}
	return os.RemoveAll(merged)
}

// layer has one layer unpacked and checked below layers, unless it is there from a
// run before, and returns where.
func (s *Source) layer(ctx context.Context, repo *registry.Repository, l registry.Layer, layers string, keys source.Keys) (string, error) {
	name := strings.NewReplacer(":", "-", "/", "-").Replace(l.DiffID)
	tree, partial := filepath.Join(layers, name), filepath.Join(layers, "partial")
	if _, err := os.Lstat(tree); err == nil {
		return tree, nil
	}
	spec := layer.Spec{MediaType: l.MediaType, Digest: l.Digest, Size: l.Size, DiffID: l.DiffID, Annotations: l.Annotations}
	var u layer.Unwrappers
	if keys != nil {
		u.Provider = keys
	}
	own, err := layer.UnwrapKey(ctx, spec, u)
	switch {
	case errors.Is(err, layer.ErrDecrypt) && keys == nil:
		return "", podvm.Explain(fmt.Errorf("%w: %w", key.ErrUnreachable, err), "a layer is encrypted, and there is no confidential data hub in reach that opens its key")
	case errors.Is(err, rpc.ErrPeerAbsent):
		return "", podvm.Explain(fmt.Errorf("%w: %w", key.ErrUnreachable, err), podvm.Cause(err))
	case err != nil:
		return "", err
	}
	defer own.Wipe()
	if err := errors.Join(os.RemoveAll(partial), os.Mkdir(partial, 0o700)); err != nil {
		return "", err
	}
	blob, err := repo.Blob(ctx, l.Descriptor)
	if err != nil {
		return "", err
	}
	defer blob.Close() //nolint:errcheck // read-only
	var st syscall.Statfs_t
	if err := syscall.Statfs(layers, &st); err != nil {
		return "", fmt.Errorf("asking for free space: %w", os.NewSyscallError("statfs", err))
	}
	stats, err := layer.Apply(ctx, blob, spec, own, partial, layer.Options{Mode: layer.Plain, Room: int64(st.Bavail) * st.Bsize, Log: s.log})
	if err != nil {
		return "", errors.Join(err, os.RemoveAll(partial))
	}
	s.log.Info("Unpacked a layer", "layer", l.Digest, "encrypted", own != nil, "bytes", stats.Bytes)
	return tree, os.Rename(partial, tree)
}

// publish moves what is in the folder model into dir, over what has its name there
// from an earlier run.
func publish(model, dir string) error {
	entries, err := os.ReadDir(model)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return podvm.Explain(source.ErrNotFound, "the image has no folder models, or nothing in it")
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		to := filepath.Join(dir, e.Name())
		if err := errors.Join(os.RemoveAll(to), os.Rename(filepath.Join(model, e.Name()), to)); err != nil {
			return err
		}
	}
	return nil
}
