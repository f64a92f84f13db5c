package image

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/image/internal/bootspec"
)

// initrd makes the archive the kernel starts with: the program init, the
// modules that reach the disk, and what to expect on it.
func initrd(ctx context.Context, all debian.Tree, init []byte, spec *bootspec.Spec) ([]byte, error) {
	modules, err := all.Modules(ctx, initrdModules)
	if err != nil {
		return nil, fmt.Errorf("making the initrd: %w", err)
	}
	doc, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	t := debian.Tree{
		"init":                    debian.File(0o755, init),
		debian.Rel(bootspec.Path): debian.File(0o600, doc),
		"dev/console":             {Mode: unix.S_IFCHR | 0o600, Major: 5, Minor: 1},
		"proc":                    debian.Dir(0o755), "sys": debian.Dir(0o755), "root": debian.Dir(0o755),
	}
	for i, m := range modules {
		t[fmt.Sprintf("%s/%03d-%s.ko", strings.TrimPrefix(bootspec.ModuleDir, "/"), i, m.Name)] = debian.File(0o600, m.Data)
	}
	var out bytes.Buffer
	// One goroutine, as the pieces that several make could depend on their number.
	w, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(t.CPIO()); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	// sd-stub aligns what it joins.
	for out.Len()%4 != 0 {
		out.WriteByte(0)
	}
	return out.Bytes(), nil
}
