package main

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// diskTime bounds the wait for the disk: under load clouds take seconds to
// attach it.
const diskTime = time.Minute

// findPartitions waits for the partitions with these unique ids and returns
// their devices. The host may give any device any id: what is on it is verified.
func findPartitions(data, hashes string) (dataDevice, hashDevice string, err error) {
	deadline := time.NewTimer(diskTime)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		found, err := partitions("/")
		if err != nil {
			return "", "", err
		}
		if found[data] != "" && found[hashes] != "" {
			return found[data], found[hashes], nil
		}
		select {
		case <-again.C:
		case <-deadline.C:
			return "", "", fmt.Errorf("no disk has the partitions %s and %s", data, hashes)
		}
	}
}

// partitions maps unique ids to devices, of all disks of the machine at root.
func partitions(root string) (map[string]string, error) {
	numbers, err := filepath.Glob(filepath.Join(root, "sys/class/block/*/partition"))
	if err != nil {
		return nil, err
	}
	tables, out := map[string][]string{}, map[string]string{}
	for _, file := range numbers {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // it went away
		}
		number, err := strconv.Atoi(strings.TrimSpace(string(raw)))
		if err != nil {
			return nil, err
		}
		place, err := filepath.EvalSymlinks(filepath.Dir(file)) // …/block/vda/vda1
		if err != nil {
			continue
		}
		disk := filepath.Base(filepath.Dir(place))
		if _, ok := tables[disk]; !ok {
			tables[disk] = diskTable(root, disk)
		}
		if ids := tables[disk]; number >= 1 && number <= len(ids) && ids[number-1] != "" {
			out[ids[number-1]] = "/dev/" + filepath.Base(place)
		}
	}
	return out, nil
}

// diskTable returns the unique ids of a disk's partitions, none where it has no
// table that can be read.
func diskTable(root, disk string) []string {
	sector := int64(512)
	if raw, err := os.ReadFile(filepath.Join(root, "sys/class/block", disk, "queue/logical_block_size")); err == nil {
		if n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 32); err == nil {
			sector = n
		}
	}
	f, err := os.Open(filepath.Join(root, "dev", disk))
	if err != nil {
		return nil
	}
	defer f.Close()
	ids, err := parseGPT(f, sector)
	if err != nil {
		return nil
	}
	return ids
}

var errGPT = errors.New("no partition table")

// parseGPT reads the unique ids of a GUID partition table, in the order of the
// partitions' numbers, "" for none.
// Source: UEFI 2.10, section 5.3.
func parseGPT(disk io.ReaderAt, sector int64) ([]string, error) {
	if sector < 512 || sector > 64<<10 {
		return nil, errGPT
	}
	header := make([]byte, 92)
	if _, err := disk.ReadAt(header, sector); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	start, count, size := le.Uint64(header[72:]), le.Uint32(header[80:]), le.Uint32(header[84:])
	if string(header[:8]) != "EFI PART" || size != 128 || count == 0 || count > 128 || start < 2 || start > 1<<32 {
		return nil, errGPT
	}
	entries := make([]byte, count*size)
	if _, err := disk.ReadAt(entries, int64(start)*sector); err != nil {
		return nil, err
	}
	out := make([]string, count)
	for i := range out {
		e := entries[i*128:]
		if id := guid(e[:16]); id != "00000000-0000-0000-0000-000000000000" {
			out[i] = guid(e[16:32])
		}
	}
	return out, nil
}

// guid is the text of 16 bytes whose first three parts are little-endian.
func guid(b []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%s-%s", le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), hex.EncodeToString(b[8:10]), hex.EncodeToString(b[10:16]))
}
