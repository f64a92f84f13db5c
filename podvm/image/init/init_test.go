package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// gpt is the start of a disk with these partitions; an empty id is none.
func gpt(sector int, ids ...string) []byte {
	le := binary.LittleEndian
	disk := make([]byte, 2*sector+128*128)
	header := disk[sector:]
	copy(header, "EFI PART")
	le.PutUint64(header[72:], 2)
	le.PutUint32(header[80:], 128)
	le.PutUint32(header[84:], 128)
	for i, id := range ids {
		if id == "" {
			continue
		}
		e := disk[2*sector+128*i:]
		e[0] = 1
		le.PutUint32(e[16:], 0x4f68bce3)
		le.PutUint16(e[20:], 0xe8cd)
		le.PutUint16(e[22:], 0x4db1)
		copy(e[24:], "\x96\xe7\xfb\xca\xf9\x84\xb7")
		e[31] = id[0]
	}
	return disk
}

const prefix = "4f68bce3-e8cd-4db1-96e7-fbcaf984b7"

func TestPartitionTables(t *testing.T) {
	for _, sector := range []int{512, 4096} {
		ids, err := parseGPT(bytes.NewReader(gpt(sector, "\x09", "", "\x0a")), int64(sector))
		if err != nil || len(ids) != 128 || !slices.Equal(ids[:4], []string{prefix + "09", "", prefix + "0a", ""}) {
			t.Errorf("sectors of %d: %q, %v", sector, ids, err)
		}
	}
	good := gpt(512, "\x09")
	for name, change := range map[string]func([]byte) []byte{
		"short":                   func(b []byte) []byte { return b[:600] },
		"entries missing":         func(b []byte) []byte { return b[:2048] },
		"no signature":            func(b []byte) []byte { b[512] = 'X'; return b },
		"entries of another size": func(b []byte) []byte { b[512+84] = 64; return b },
		"a million entries":       func(b []byte) []byte { b[512+82] = 16; return b },
		"no entries":              func(b []byte) []byte { b[512+80] = 0; return b },
		"entries in the header":   func(b []byte) []byte { b[512+72] = 1; return b },
		"entries far away":        func(b []byte) []byte { b[512+79] = 0x80; return b },
	} {
		if ids, err := parseGPT(bytes.NewReader(change(bytes.Clone(good))), 512); err == nil {
			t.Errorf("%s: %q", name, ids)
		}
	}
	for _, sector := range []int64{-512, 0, 1, 1 << 40} {
		if _, err := parseGPT(bytes.NewReader(good), sector); err == nil {
			t.Errorf("sectors of %d", sector)
		}
	}
}

func FuzzGPT(f *testing.F) {
	f.Add(gpt(512, "\x09", "\x0a"), int64(512))
	f.Add(gpt(4096, "\x09"), int64(4096))
	f.Fuzz(func(t *testing.T, disk []byte, sector int64) {
		if ids, err := parseGPT(bytes.NewReader(disk), sector); err == nil && len(ids) > 128 {
			t.Errorf("%d partitions", len(ids))
		}
	})
}

// machine is a file system as the kernel shows it, with two disks: vda has two
// partitions and no table that can be read, nvme0n1 one partition.
func machine(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := func(at, to string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Join(root, "sys/class/block"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(root, "sys/class/block", at)); err != nil {
			t.Fatal(err)
		}
	}
	write("sys/devices/pci/block/vda/queue/logical_block_size", "512\n")
	write("sys/devices/pci/block/vda/vda1/partition", "1\n")
	write("sys/devices/pci/nvme/nvme0n1/queue/logical_block_size", "4096\n")
	write("sys/devices/pci/nvme/nvme0n1/nvme0n1p2/partition", "2\n")
	link("vda", "../../devices/pci/block/vda")
	link("vda1", "../../devices/pci/block/vda/vda1")
	link("nvme0n1", "../../devices/pci/nvme/nvme0n1")
	link("nvme0n1p2", "../../devices/pci/nvme/nvme0n1/nvme0n1p2")
	write("dev/vda", strings.Repeat("no table", 1000))
	write("dev/nvme0n1", string(gpt(4096, "\x09", "\x0a")))
	return root
}

func TestPartitionsOfAllDisks(t *testing.T) {
	found, err := partitions(machine(t))
	if err != nil || len(found) != 1 || found[prefix+"0a"] != "/dev/nvme0n1p2" {
		t.Errorf("%q, %v", found, err)
	}
}

func TestVerityTable(t *testing.T) {
	for size := range 20 {
		params := strings.Repeat("p", size)
		b := target(8, params)
		if len(b)%8 != 0 || binary.NativeEndian.Uint64(b) != 0 || binary.NativeEndian.Uint64(b[8:]) != 8 ||
			!bytes.HasPrefix(b[24:], []byte("verity\x00")) || !bytes.HasPrefix(b[dmTarget:], []byte(params+"\x00")) {
			t.Errorf("%d bytes: %q", size, b)
		}
	}
}
