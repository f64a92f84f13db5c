package vmtest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// The tests in this file are of what the pod's owner gives to a machine that has
// attested by its TPM.

// resident are the daemons of ours that run for as long as the machine does.
var resident = []string{"attestation-agent", "confidential-data-hub", "api-server-rest", "agent-protocol-forwarder"}

// forwarderBar is for user data done to forwarder ready, in seconds, under emulation
// on a host that has nothing else to do, which is when it is checked: with checkEnv.
const (
	forwarderBar = 1.5
	checkEnv     = "SEALPOD_BENCH_CHECK"

	forwarderReady = "forwarder ready"
)

func TestInGuestImagePodTimes(t *testing.T) {
	inGuest(t)
	type step struct {
		name string
		at   float64
	}
	steps := []step{{"kernel start", 0}}
	for _, u := range []struct{ name, unit string }{
		{"user data done", "process-user-data"}, {"attestation agent ready", "attestation-agent"},
		{"data hub ready", "confidential-data-hub"}, {"REST server ready", "api-server-rest"},
		{"kata-agent started", "kata-agent"}, {forwarderReady, "agent-protocol-forwarder"},
	} {
		us, err := strconv.ParseFloat(property(t, u.unit, "ActiveEnterTimestampMonotonic"), 64)
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step{u.name, us / 1e6})
	}
	for _, f := range []struct{ name, file string }{
		{"first secret", filepath.Join(firstContainer, agenttest.SecretFile)}, {"first container rootfs", filepath.Join(appContainer, agenttest.RootFSFile)},
	} {
		text, _, err := agenttest.ReadTime(containersDir + f.file)
		if err != nil {
			t.Fatal(err)
		}
		at, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step{f.name, at})
	}
	data := steps[1].at
	for _, s := range steps {
		fmt.Printf("FIGURE %-24s %6.2f s, %+6.2f s after user data\n", s.name, s.at, s.at-data)
		if s.name == forwarderReady && s.at-data > forwarderBar && os.Getenv(checkEnv) == "1" {
			t.Errorf("the forwarder took %.2f s, at most %.1f are wanted", s.at-data, forwarderBar)
		}
	}
}

// maxPSS is for all resident daemons together when they are idle, in kB.
const maxPSS = 80_000

// What a pull has taken, the daemons give back in minutes: their memory is judged
// where they have started anew, in the test that kills them.
func TestInGuestImagePodMemoryAfterAPull(t *testing.T) {
	inGuest(t)
	residentPSS(t, "after a pull")
}

// residentPSS prints what the resident daemons take and returns the sum, in kB.
func residentPSS(t *testing.T, when string) (sum int) {
	t.Helper()
	for _, unit := range resident {
		raw, err := os.ReadFile("/proc/" + property(t, unit, "MainPID") + "/smaps_rollup")
		if err != nil {
			t.Fatal(err)
		}
		kb := -1
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				if kb, err = strconv.Atoi(f[1]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if kb < 0 {
			t.Fatalf("no Pss of %s:\n%s", unit, raw)
		}
		sum += kb
		fmt.Printf("FIGURE memory %s: %s %.1f MB\n", when, unit, float64(kb)/1000)
	}
	fmt.Printf("FIGURE memory %s: all resident daemons %.1f MB\n", when, float64(sum)/1000)
	return sum
}

func TestInGuestImagePodSecretArrives(t *testing.T) {
	inGuest(t)
	_, got, err := agenttest.ReadTime(filepath.Join(containersDir, firstContainer, agenttest.SecretFile))
	if err != nil || got != secretText {
		t.Errorf("the container has got %q, %v", got, err)
	}
}

func TestInGuestImagePodSealedImageIsThere(t *testing.T) {
	inGuest(t)
	root := filepath.Join(containersDir, appContainer, "images/rootfs")
	if got, err := os.ReadFile(filepath.Join(root, weightsAt)); err != nil || string(got) != weights {
		t.Errorf("%q, %v", got, err)
	}
	// What was decrypted is nowhere but on scratch storage.
	var scratch unix.Stat_t
	if err := unix.Stat("/run/kata-containers/image", &scratch); err != nil {
		t.Fatal(err)
	}
	found := 0
	if err := filepath.WalkDir("/run/kata-containers/image", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != filepath.Base(weightsAt) {
			return err
		}
		found++
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil || st.Dev != scratch.Dev {
			t.Errorf("%s is on device %x, not %x, %v", path, st.Dev, scratch.Dev, err)
		}
		return nil
	}); err != nil || found == 0 {
		t.Errorf("%d files in the image store, %v", found, err)
	}
}

const (
	ledger     = "/run/cloud-volumes/data/ledger"
	newLedger  = "LEDGER is new"
	keptLedger = "LEDGER was kept"
)

// The host has asked for the volume with the container of the sealed image; it is
// new in one boot and must have its data in the next.
func TestInGuestImagePodCloudVolumeIsThere(t *testing.T) {
	inGuest(t)
	var st unix.Stat_t
	if err := unix.Stat(filepath.Dir(ledger), &st); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/dm/uuid", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil || !strings.HasPrefix(string(id), "CRYPT-LUKS2-") {
		t.Fatalf("its device is %q, %v", id, err)
	}
	switch got, err := os.ReadFile(ledger); {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.WriteFile(ledger, []byte("paid"), 0o600); err != nil {
			t.Fatal(err)
		}
		fmt.Println(newLedger)
	case err == nil && string(got) == "paid":
		fmt.Println(keptLedger)
	default:
		t.Errorf("%q, %v", got, err)
	}
}

// An emptyDir on a disk, as kata-agent asks for it.
// Source: kata-containers src/agent/src/storage/block_handler.rs at 7c6ba40c.
func TestInGuestImagePodDataHubMountsAnEmptyDir(t *testing.T) {
	inGuest(t)
	const point = containersDir + "sandbox/empty-dir"
	var disk unix.Stat_t
	if err := unix.Stat("/dev/vdc", &disk); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(point, 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	hub := rpc.NewClient(podvm.CDHSocket, time.Second)
	defer hub.Close()
	if err := hub.Do(ctx, func(c *ttrpc.Client) error {
		_, err := datahub.NewSecureMountServiceClient(c).SecureMount(ctx, &datahub.SecureMountRequest{
			VolumeType: "block-device", MountPoint: point, Options: map[string]string{
				"deviceId": fmt.Sprintf("%d:%d", unix.Major(disk.Rdev), unix.Minor(disk.Rdev)), "sourceType": "empty", "targetType": "fileSystem",
				"filesystemType": "ext4", "encryptionType": "luks2", "mkfsOpts": "-O ^has_journal -m 0 -i 163840 -I 128", "dataIntegrity": "false",
			},
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	// In this mount namespace, which is kata-agent's, too.
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		t.Fatalf("type %x, %v", st.Type, err)
	}
	if err := os.WriteFile(point+"/scratch", []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(point, 0); err != nil {
		t.Error(err)
	}
}
