package image

import (
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"regexp"
	"strings"

	"github.com/sealpod/sealpod/podvm/debian"
	"github.com/sealpod/sealpod/podvm/image/internal/bootspec"
)

// What would be random is fixed: two builds must be equal, and neither value
// hides anything.
const (
	salt       = "5ea1b0d05ea1b0d05ea1b0d05ea1b0d05ea1b0d05ea1b0d05ea1b0d05ea1b0d0"
	verityUUID = "5ea1b0d0-0000-4000-8000-000000000001"
)

// squash writes the tree as a squashfs image to path.
func squash(ctx context.Context, t debian.Tree, path string) error {
	archive, err := t.Tar()
	if err != nil {
		return fmt.Errorf("making the root file system: %w", err)
	}
	_, err = run(ctx, archive, "mksquashfs", "-", path, "-tar", "-quiet", "-no-progress", "-no-xattrs", "-all-root",
		"-no-exports", "-b", "131072", "-comp", "zstd", "-Xcompression-level", "12")
	return err
}

var rootHashLine = regexp.MustCompile(`(?m)^Root hash:\s+([0-9a-f]{64})$`)

// verity writes the hash tree of the file data to the file hashes.
func verity(ctx context.Context, data, hashes string) (*bootspec.Spec, error) {
	info, err := os.Stat(data)
	if err != nil {
		return nil, err
	}
	if info.Size()%bootspec.BlockSize != 0 {
		return nil, fmt.Errorf("the root file system has %d bytes, which are no whole blocks", info.Size())
	}
	out, err := run(ctx, nil, "veritysetup", "format", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096",
		"--salt="+salt, "--uuid="+verityUUID, data, hashes)
	if err != nil {
		return nil, err
	}
	m := rootHashLine.FindSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("veritysetup has not said the root hash")
	}
	rootHash := string(m[1])
	return &bootspec.Spec{
		Data: uuid(rootHash[:32]), Hash: uuid(rootHash[32:]), UUID: verityUUID,
		RootHash: rootHash, Salt: salt, Blocks: uint64(info.Size()) / bootspec.BlockSize,
	}, nil
}

// uuid makes the text of 16 bytes in hex. That partitions of a root file system
// are named by their root hash is systemd's rule for discoverable partitions.
// Source: uapi-group specifications, discoverable_partitions_specification.
func uuid(hexBytes string) string {
	if _, err := hex.DecodeString(hexBytes); err != nil || len(hexBytes) != 32 {
		panic("not 16 bytes: " + hexBytes)
	}
	h := hexBytes
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}
