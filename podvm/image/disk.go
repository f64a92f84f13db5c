package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

const (
	scratchLabel = "trusted_store"
	diskID       = "5ea1b0d0-0000-4000-8000-000000000010"
	espID        = "5ea1b0d0-0000-4000-8000-000000000011"
	scratchID    = "5ea1b0d0-0000-4000-8000-000000000012"

	mib         = 1 << 20
	espSize     = 64 * mib
	scratchSize = 32 * mib
)

// Types of partitions.
// Source: uapi-group specifications, discoverable_partitions_specification.
const (
	typeESP    = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	typeRoot   = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
	typeVerity = "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"
	typeLinux  = "0fc63daf-8483-4772-8e79-3d69d8477de4"
)

// partition is a partition to make.
type partition struct {
	name, kind, id, content string
}

// writeDisk makes a disk of the partitions, each as large as its content, at path.
func writeDisk(ctx context.Context, path string, parts []partition) (err error) {
	script := &strings.Builder{}
	fmt.Fprintf(script, "label: gpt\nlabel-id: %s\nunit: sectors\nfirst-lba: 2048\n", diskID)
	at := int64(mib)
	starts := make([]int64, len(parts))
	for i, p := range parts {
		info, err := os.Stat(p.content)
		if err != nil {
			return err
		}
		size := (info.Size() + mib - 1) / mib * mib
		fmt.Fprintf(script, "start=%d, size=%d, type=%s, uuid=%s, name=%q\n", at/512, size/512, p.kind, p.id, p.name)
		starts[i], at = at, at+size
	}
	disk, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	if err := disk.Truncate(at + mib); err != nil { // the second table is at the end
		return err
	}
	if _, err := run(ctx, strings.NewReader(script.String()), "sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", path); err != nil {
		return err
	}
	for i, p := range parts {
		if err := copySparse(disk, starts[i], p.content); err != nil {
			return fmt.Errorf("writing the partition %s: %w", p.name, err)
		}
	}
	return nil
}

// copySparse writes a file into disk, but for what is zero.
func copySparse(disk *os.File, at int64, content string) error {
	f, err := os.Open(content)
	if err != nil {
		return err
	}
	defer f.Close()
	buf, zero := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(f, buf)
		if n > 0 && !bytes.Equal(buf[:n], zero[:n]) {
			if _, err := disk.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		at += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// esp makes an EFI partition that boots the unified kernel image uki, as file
// path.
func esp(ctx context.Context, uki, path string) error {
	if err := blank(path, espSize); err != nil {
		return err
	}
	if _, err := run(ctx, nil, "mkfs.vfat", "--invariant", "-F", "32", "-S", "512", "-s", "1", "-i", "5ea1b0d0", "-n", "ESP", path); err != nil {
		return err
	}
	if _, err := run(ctx, nil, "mmd", "-i", path, "::/EFI", "::/EFI/BOOT"); err != nil {
		return err
	}
	_, err := run(ctx, nil, "mcopy", "-i", path, uki, "::/EFI/BOOT/BOOTX64.EFI")
	return err
}

func blank(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// qcow2 converts the raw disk.
func qcow2(ctx context.Context, raw, out string) error {
	part := out + ".part"
	if _, err := run(ctx, nil, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "1", raw, part); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	return os.Rename(part, filepath.Clean(out))
}
