package luks

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/tool"
)

// mkfs.ext4 options that shape the file system and nothing else. Not among
// them: -d copies a directory of the pod VM, -l reads a file, -n and -S write no
// file system, -J device= and -E offset= put data elsewhere.
const (
	mkfsWithValue = "bCEgGiIJLmMNOTU"
	mkfsFlags     = "DFjqv"
)

// MkfsOptions splits the caller's options for mkfs.ext4 at white space, as
// upstream does: there is no quoting.
//
// Errors: tool.ErrOption for options that do not merely shape the file system, and
// for anything that is not an option.
func MkfsOptions(opts string) ([]string, error) {
	args := strings.FieldsFunc(opts, func(r rune) bool { return r < 128 && strings.ContainsRune(" \t\n\r\f", r) })
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if len(arg) < 2 || arg[0] != '-' {
			return nil, optionRefused(arg)
		}
	letters:
		for j, letter := range arg[1:] {
			switch {
			case strings.ContainsRune(mkfsFlags, letter):
			case strings.ContainsRune(mkfsWithValue, letter):
				value := arg[1+j+1:]
				if value == "" {
					if i++; i == len(args) {
						return nil, optionRefused(arg)
					}
					value = args[i]
				}
				if elsewhere(letter, value) {
					return nil, optionRefused("-" + string(letter) + " " + value)
				}
				break letters
			default:
				return nil, optionRefused(arg)
			}
		}
	}
	return args, nil
}

func elsewhere(letter rune, value string) bool {
	for _, v := range strings.Split(value, ",") {
		name, _, _ := strings.Cut(v, "=")
		if letter == 'J' && name == "device" || letter == 'E' && (name == "offset" || name == "android_sparse") {
			return true
		}
	}
	return false
}

func optionRefused(opt string) error {
	return tool.Option("mkfsOpts: %q is not supported", podvm.Printable(opt, 64))
}

const lazyInit = "lazy_itable_init"

// eagerInit makes mkfs.ext4 write inode tables at once unless args say how:
// behind dm-integrity a block that was never written cannot be read, and the
// kernel would initialise them lazily by reading.
func eagerInit(args []string) []string {
	if slices.ContainsFunc(args, func(a string) bool { return strings.Contains(a, lazyInit) }) {
		return args
	}
	out := slices.Clone(args)
	for i, arg := range slices.Backward(out) {
		// The value of -E is the rest of the argument, or the next one.
		if arg == "-E" && i+1 < len(out) {
			out[i+1] += "," + lazyInit + "=0"
			return out
		}
		if strings.HasPrefix(arg, "-E") && arg != "-E" {
			out[i] += "," + lazyInit + "=0"
			return out
		}
	}
	return append(out, "-E", lazyInit+"=0")
}

// mkfs puts an ext4 on the mapping at path.
func (d *Driver) mkfs(ctx context.Context, path string, v *Volume) error {
	args := v.MkfsOptions
	if v.Integrity {
		args = eagerInit(args)
		if err := d.prewrite(ctx, path, args); err != nil {
			return tool.Explain("preparing for a file system", err, "preparing the new volume for a file system failed")
		}
	}
	if _, err := d.run.Run(ctx, nil, "mkfs.ext4", append([]string{path, "-F"}, args...)...); err != nil {
		return tool.Explain("making the file system", err, "mkfs.ext4 failed on the new volume")
	}
	return nil
}

// prewrite writes zeros to the blocks that mkfs.ext4 changes in part: behind a
// dm-integrity that was not wiped, reading a block before its first write
// fails. A dry run tells which they are: the superblock and its copies.
// Source: cryptsetup issue 525, guest-components
// confidential-data-hub/hub/src/storage/drivers/filesystem.rs at 8246e5e.
func (d *Driver) prewrite(ctx context.Context, path string, args []string) error {
	out, err := d.run.Run(ctx, nil, "mkfs.ext4", append([]string{path, "-F", "-n"}, args...)...)
	if err != nil {
		return err
	}
	offsets, err := superblocks(string(out))
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// O_DIRECT wants aligned memory.
	raw := make([]byte, 2*4096)
	zero := raw[-uintptr(unsafe.Pointer(&raw[0]))&4095:][:4096]
	for _, at := range offsets {
		if _, err := f.WriteAt(zero, at); err != nil {
			return fmt.Errorf("writing block at %d: %w", at, err)
		}
	}
	return f.Close()
}

// superblocks reads the output of mkfs.ext4 -n and returns the offsets of all
// 4096-byte blocks that hold a superblock, in bytes. A small file system has no
// copies, which upstream takes for an error.
func superblocks(out string) ([]int64, error) {
	blockSize := int64(0)
	for line := range strings.Lines(out) {
		// Creating filesystem with 32768 4k blocks and 32768 inodes
		if f := strings.Fields(line); len(f) > 5 && f[0] == "Creating" && strings.HasPrefix(f[5], "blocks") {
			n, err := strconv.ParseInt(strings.TrimSuffix(f[4], "k"), 10, 64)
			if err != nil || n < 1 || n > 64 {
				return nil, fmt.Errorf("mkfs.ext4 names block size %q", podvm.Printable(f[4], 16))
			}
			blockSize = n << 10
		}
	}
	if blockSize == 0 {
		return nil, errors.New("mkfs.ext4 names no block size")
	}
	offsets := []int64{0}
	_, list, _ := strings.Cut(out, "Superblock backups stored on blocks:")
	for _, word := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' }) {
		n, err := strconv.ParseInt(word, 10, 64)
		if err != nil {
			break // what follows the list
		}
		if n < 0 || n > 1<<45 || len(offsets) > 4096 {
			return nil, fmt.Errorf("mkfs.ext4 names block %d", n)
		}
		offsets = append(offsets, n*blockSize&^4095)
	}
	return slices.Compact(offsets), nil
}
