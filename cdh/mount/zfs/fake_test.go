package zfs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
)

// The kernel module zfs is not in Debian's kernels, so zpool and zfs are this
// test binary: programs that keep state in a file, know exactly the commands
// that are sent here, and read a key as the real ones do. That the real ones
// understand these commands follows from their manuals and from upstream's use
// alone. blkid is real, the label it looks for is written by zpool create.
func TestMain(m *testing.M) {
	switch name := filepath.Base(os.Args[0]); name {
	case "zpool", "zfs":
		syscall.Exit(program(name, os.Args[1:])) // os.Exit takes a second under the race detector
	}
	goleak.VerifyTestMain(m)
}

// dataset is what a pool holds, on the disk; the rest is the kernel's.
type dataset struct {
	Key, MountPoint, CanMount string
	Encryption                string
	Loaded, Mounted           bool // kernel
}

type state struct {
	Disks    map[string]map[string]map[string]*dataset // device, pool, dataset
	Imported map[string]string                         // pool to device
	Calls    []string
	Fail     map[string]bool // calls that fail, by their beginning
}

func statePath(root string) string { return filepath.Join(root, "zfs.json") }

func load(root string) *state {
	s := &state{Disks: map[string]map[string]map[string]*dataset{}, Imported: map[string]string{}, Fail: map[string]bool{}}
	if raw, err := os.ReadFile(statePath(root)); err == nil {
		if err := json.Unmarshal(raw, s); err != nil {
			panic(err)
		}
	}
	return s
}

func (s *state) save(root string) {
	raw, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(statePath(root), raw, 0o600); err != nil {
		panic(err)
	}
}

func program(name string, args []string) int {
	root := os.Getenv(podvm.HostRootEnv)
	s := load(root)
	call := name + " " + strings.Join(args, " ")
	s.Calls = append(s.Calls, call)
	defer func() { s.save(root) }()
	for f := range s.Fail {
		if strings.HasPrefix(call, f) {
			fmt.Fprintln(os.Stderr, "this fails")
			return 1
		}
	}
	var err error
	if name == "zpool" {
		err = s.zpool(args)
	} else {
		err = s.zfs(args)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func (s *state) zpool(args []string) error {
	switch {
	case slices.Equal(args, []string{"list", "-H", "-o", "name"}):
		for p := range s.Imported {
			fmt.Println(p)
		}
	case len(args) == 8 && slices.Equal(args[:7], []string{"list", "-H", "-v", "-P", "-L", "-o", "name"}):
		fmt.Printf("%s\n\t%s\t1G\t-\n", args[7], s.Imported[args[7]])
	case len(args) == 4 && args[0] == "create" && args[1] == "-f":
		if s.Imported[args[2]] != "" {
			return fmt.Errorf("cannot create '%s': pool already exists", args[2])
		}
		s.Disks[args[3]] = map[string]map[string]*dataset{args[2]: {}}
		s.Imported[args[2]] = args[3]
		return label(args[3], true)
	case len(args) == 5 && slices.Equal(args[:3], []string{"import", "-N", "-d"}):
		if s.Disks[args[3]][args[4]] == nil {
			return fmt.Errorf("cannot import '%s': no such pool available", args[4])
		}
		s.Imported[args[4]] = args[3]
	case len(args) == 2 && args[0] == "export":
		for _, d := range s.Disks[s.Imported[args[1]]][args[1]] {
			d.Loaded, d.Mounted = false, false
		}
		delete(s.Imported, args[1])
	case len(args) == 2 && args[0] == "destroy":
		device := s.Imported[args[1]]
		delete(s.Imported, args[1])
		delete(s.Disks, device)
		return label(device, false)
	default:
		return fmt.Errorf("unrecognized command: %q", args)
	}
	return nil
}

// label writes what blkid takes for a member of a pool: uberblocks.
func label(device string, on bool) error {
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var magic [8]byte
	if on {
		magic = [8]byte{0x0c, 0xb1, 0xba}
	}
	for at := int64(128 << 10); at < 256<<10; at += 1 << 10 {
		if _, err := f.WriteAt(magic[:], at); err != nil {
			return err
		}
	}
	return nil
}

func (s *state) find(name string) (*dataset, error) {
	pool, ds, _ := strings.Cut(name, "/")
	if d := s.Disks[s.Imported[pool]][pool][ds]; d != nil {
		return d, nil
	}
	return nil, fmt.Errorf("cannot open '%s': dataset does not exist", name)
}

// key reads a passphrase as zfs does from what is no terminal: the first line.
func key() (string, error) {
	raw, err := io.ReadAll(os.Stdin)
	if err != nil {
		return "", err
	}
	lines := bytes.Split(raw, []byte{'\n'})
	if len(lines) != 3 || len(lines[2]) != 0 || !bytes.Equal(lines[0], lines[1]) || len(lines[0]) < 8 || len(lines[0]) > 512 {
		return "", fmt.Errorf("key of %d bytes in %d lines", len(raw), len(lines))
	}
	return string(lines[0]), nil
}

func (s *state) zfs(args []string) error {
	name := args[len(args)-1]
	switch {
	case args[0] == "get":
		d, err := s.find(name)
		if err != nil {
			return err
		}
		if !slices.Equal(args[:6], []string{"get", "-H", "-p", "-o", "property,value", "encryption,keyformat,encryptionroot,keystatus,mounted,mountpoint"}) {
			return fmt.Errorf("unrecognized command: %q", args)
		}
		status := map[bool]string{true: "available", false: "unavailable"}[d.Loaded]
		mounted := map[bool]string{true: "yes", false: "no"}[d.Mounted]
		fmt.Printf("encryption\t%s\nkeyformat\tpassphrase\nencryptionroot\t%s\nkeystatus\t%s\nmounted\t%s\nmountpoint\t%s\n", d.Encryption, name, status, mounted, d.MountPoint)
	case len(args) == 8 && args[0] == "create" && args[2] == "encryption=aes-256-gcm" && args[4] == "keyformat=passphrase":
		k, err := key()
		if err != nil {
			return err
		}
		pool, ds, _ := strings.Cut(name, "/")
		s.Disks[s.Imported[pool]][pool][ds] = &dataset{Key: k, MountPoint: strings.TrimPrefix(args[6], "mountpoint="), Encryption: "aes-256-gcm", Loaded: true, Mounted: true}
	case len(args) == 2 && args[0] == "load-key":
		k, err := key()
		if err != nil {
			return err
		}
		d, err := s.find(name)
		if err != nil {
			return err
		}
		if d.Key != k {
			return fmt.Errorf("key load error: incorrect key provided for '%s'", name)
		}
		d.Loaded = true
	case len(args) == 2 && args[0] == "destroy":
		pool, ds, _ := strings.Cut(name, "/")
		delete(s.Disks[s.Imported[pool]][pool], ds)
	default:
		d, err := s.find(name)
		if err != nil {
			return err
		}
		switch {
		case len(args) == 2 && args[0] == "unload-key" && d.Loaded && !d.Mounted:
			d.Loaded = false
		case len(args) == 3 && args[0] == "set" && args[1] == "canmount=noauto":
			d.CanMount = "noauto"
		case len(args) == 3 && args[0] == "set" && strings.HasPrefix(args[1], "mountpoint=/"):
			d.MountPoint = args[1][len("mountpoint="):]
		case len(args) == 2 && args[0] == "mount" && d.Loaded && !d.Mounted:
			d.Mounted = true
		default:
			return fmt.Errorf("unrecognized command: %q", args)
		}
	}
	return nil
}
