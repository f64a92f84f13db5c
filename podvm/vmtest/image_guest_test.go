package vmtest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The tests in this file run in a machine that has booted an image.

func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestInGuestImageEverythingIsUp(t *testing.T) {
	inGuest(t)
	if state := output(t, "/usr/bin/systemctl", "is-system-running", "--wait"); state != "running" {
		t.Errorf("the system is %s\n%s\n%s", state, output(t, "/usr/bin/systemctl", "--failed", "--no-legend", "--plain"),
			output(t, "/usr/bin/journalctl", "-b", "--no-pager", "-p", "warning"))
	}
}

func TestInGuestImageTimes(t *testing.T) {
	inGuest(t)
	for _, name := range []string{"UserspaceTimestampMonotonic", "FinishTimestampMonotonic"} {
		us, err := strconv.Atoi(output(t, "/usr/bin/systemctl", "show", "--value", "-p", name))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("FIGURE kernel start to %s %.2f s\n", strings.TrimSuffix(name, "TimestampMonotonic"), float64(us)/1e6)
	}
}

func TestInGuestImageMeasurements(t *testing.T) {
	inGuest(t)
	for pcr := range 16 {
		value, err := os.ReadFile(fmt.Sprintf("/sys/class/tpm/tpm0/pcr-sha256/%d", pcr))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("PCR %d %s\n", pcr, strings.ToLower(strings.TrimSpace(string(value))))
	}
}

func TestInGuestImageRootIsVerifiedAndReadOnly(t *testing.T) {
	inGuest(t)
	var root unix.Statfs_t
	if err := unix.Statfs("/", &root); err != nil || root.Type != unix.SQUASHFS_MAGIC || root.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("type %x, flags %x, %v", root.Type, root.Flags, err)
	}
	var info unix.Stat_t
	if err := unix.Stat("/", &info); err != nil {
		t.Fatal(err)
	}
	target, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/dm/uuid", unix.Major(info.Dev), unix.Minor(info.Dev)))
	if err != nil || !bytes.HasPrefix(target, []byte("CRYPT-VERITY-")) {
		t.Errorf("the device of the root is %q, %v", target, err)
	}
	if err := os.WriteFile("/etc/file", nil, 0o600); err == nil {
		t.Error("/etc can be written")
	}
	if err := os.WriteFile("/var/file", nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.ReadDir("/sys/firmware/efi/efivars"); err == nil {
		if names, _ := os.ReadDir("/sys/firmware/efi/efivars"); len(names) > 0 {
			t.Error("the variables of the firmware are there")
		}
	}
}

func TestInGuestImageScratchTakesTheRestOfTheDisk(t *testing.T) {
	inGuest(t)
	const link = "/dev/disk/by-partlabel/trusted_store"
	if size, err := diskSize(link); err != nil || size < grown-300<<20 {
		t.Errorf("%s has %d MiB, %v", link, size>>20, err)
	}
}

func TestInGuestImageNetworkIsConfigured(t *testing.T) {
	inGuest(t)
	output(t, "/usr/bin/systemctl", "start", "network-online.target")
	if out := output(t, "/usr/bin/ip", "-4", "-o", "addr", "show", "scope", "global"); !strings.Contains(out, "10.0.2.15/24") {
		t.Errorf("addresses: %s", out)
	}
	if out, err := os.ReadFile("/etc/resolv.conf"); err != nil || !strings.Contains(string(out), "nameserver 10.0.2.3") {
		t.Errorf("resolv.conf: %s, %v", out, err)
	}
}
