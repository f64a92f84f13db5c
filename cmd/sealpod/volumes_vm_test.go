package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// The tests here are callers of a real data hub that mount real volumes. They
// need device-mapper and disks of their own, so make test-vm runs them in a
// virtual machine, twice with the same disks.

// Disks of the machine.
const (
	keyedDisk     = "/dev/vdb" // survives the reboot
	ephemeralDisk = "/dev/vdd"
)

// inMachine skips where there is no virtual machine of the test's own.
func inMachine(t *testing.T) {
	t.Helper()
	if os.Getenv("SEALPOD_VM") != "1" {
		t.Skip("needs device-mapper and disks to overwrite: make test-vm runs it")
	}
}

// startHub runs confidential-data-hub with a key in the guest's image, and
// returns a client and what kills it.
func startHub(t *testing.T) (hub *rpc.Client, kill func()) {
	t.Helper()
	dir := t.TempDir()
	keys, err := json.Marshal(map[string]string{"default/volume/key": base64.StdEncoding.EncodeToString([]byte("correct horse battery staple"))})
	if err != nil {
		t.Fatal(err)
	}
	config, socket := filepath.Join(dir, "cdh.toml"), filepath.Join(dir, "cdh.sock")
	for path, text := range map[string]string{
		"/etc/aa-offline_fs_kbc-keys.json": string(keys),
		config:                             fmt.Sprintf("socket = \"unix://%s\"\n[kbc]\nname = \"offline_fs_kbc\"\n[image]\n", socket),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), "confidential-data-hub", "-c", config)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	hub = rpc.NewClient(socket, time.Minute)
	t.Cleanup(func() { _ = hub.Close() })
	return hub, kill
}

func secureMount(t *testing.T, hub *rpc.Client, point string, options map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := hub.Do(ctx, func(c *ttrpc.Client) error {
		_, err := datahub.NewSecureMountServiceClient(c).SecureMount(ctx, &datahub.SecureMountRequest{
			VolumeType: "block-device", Options: options, MountPoint: point,
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// forwarderMount is how cloud-api-adaptor's forwarder mounts an encrypted cloud
// volume: what is on the device decides whether it is new.
// Source: cloud-api-adaptor pkg/forwarder/interceptor at fbdde75.
func forwarderMount(t *testing.T, hub *rpc.Client, point string) (source string) {
	t.Helper()
	magic := make([]byte, 6)
	f, err := os.Open(keyedDisk)
	if err == nil {
		_, err = f.Read(magic)
		_ = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	source = "empty"
	if string(magic) == "LUKS\xba\xbe" {
		source = "encrypted"
	}
	secureMount(t, hub, point, map[string]string{
		"devicePath": keyedDisk, "sourceType": source, "targetType": "fileSystem", "encryptionType": "luks2",
		"filesystemType": "ext4", "key": "kbs:///default/volume/key", "mapperName": "caa-data",
	})
	return source
}

// forwarderUnmount undoes it without the data hub, as the forwarder does.
func forwarderUnmount(t *testing.T, point string) {
	t.Helper()
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cryptsetup", "close", "caa-data").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// onDisk tells whether text is anywhere on the disk.
func onDisk(disk string, text []byte) (bool, error) {
	f, err := os.Open(disk)
	if err != nil {
		return false, err
	}
	defer f.Close()
	const step = 1 << 20
	window := make([]byte, len(text)+step) // the end of the last step, and the next
	for {
		n, err := io.ReadFull(f, window[len(text):])
		if bytes.Contains(window[:len(text)+n], text) {
			return true, nil
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		copy(window, window[step:])
	}
}

func TestVMBeforeRebootTheForwarderMountsACloudVolume(t *testing.T) {
	inMachine(t)
	hub, kill := startHub(t)
	const point = "/run/cloud-volumes/data"
	if source := forwarderMount(t, hub, point); source != "empty" {
		t.Fatal(source)
	}
	if err := os.WriteFile(point+"/ledger", []byte("paid"), 0o600); err != nil {
		t.Fatal(err)
	}
	forwarderUnmount(t, point)
	if found, err := onDisk(keyedDisk, []byte("ledger")); err != nil || found {
		t.Fatalf("%v, or the file's name is on the disk", err)
	}
	kill() // a data hub that starts again knows what to do
	hub, _ = startHub(t)
	if source := forwarderMount(t, hub, point); source != "encrypted" {
		t.Fatal(source)
	}
	if got, err := os.ReadFile(point + "/ledger"); err != nil || string(got) != "paid" {
		t.Fatalf("%q, %v", got, err)
	}
	unix.Sync() // and the power goes off with the volume mounted
}

func TestVMAfterRebootTheForwarderFindsItsData(t *testing.T) {
	inMachine(t)
	hub, _ := startHub(t)
	const point = "/run/cloud-volumes/data"
	if source := forwarderMount(t, hub, point); source != "encrypted" {
		t.Fatal(source)
	}
	if got, err := os.ReadFile(point + "/ledger"); err != nil || string(got) != "paid" {
		t.Fatalf("%q, %v", got, err)
	}
	forwarderUnmount(t, point)
}

// An emptyDir on a disk that nothing outlives.
// Source: kata-containers src/agent/src/storage/block_handler.rs at 7c6ba40.
func TestVMKataAgentMountsAnEmptyDir(t *testing.T) {
	inMachine(t)
	hub, _ := startHub(t)
	var number unix.Stat_t
	if err := unix.Stat(ephemeralDisk, &number); err != nil {
		t.Fatal(err)
	}
	const point = "/run/kata-containers/sandbox/empty-dir"
	began := time.Now()
	secureMount(t, hub, point, map[string]string{
		"deviceId":   fmt.Sprintf("%d:%d", unix.Major(number.Rdev), unix.Minor(number.Rdev)),
		"sourceType": "empty", "targetType": "fileSystem", "filesystemType": "ext4", "encryptionType": "luks2",
		"mkfsOpts": "-O ^has_journal -m 0 -i 163840 -I 128", "dataIntegrity": "false",
	})
	t.Logf("FIGURE ephemeral volume of 256 MiB in an emulated machine: %v", time.Since(began).Round(time.Millisecond))
	if err := os.WriteFile(point+"/scratch", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Fatal(err)
	}
}
