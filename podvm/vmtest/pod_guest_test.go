package vmtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/forwarder/agenttest"
)

// The tests in this file run in a machine whose image has the daemons of a pod VM
// and a stand-in for kata-agent, and that has got user data.

const (
	containersDir = "/run/kata-containers/"
	agentSocket   = containersDir + "agent.sock"
	agentJournal  = containersDir + "journal"
	// The containers that the host makes.
	firstContainer, appContainer = "first", "app"
	// sandboxCall is the call that the host makes.
	sandboxCall = "sandbox"
	// upTime is for things to come up.
	upTime = 90 * time.Second
)

// daemons are the units that run for as long as the machine does.
var daemons = []string{"attestation-agent", "confidential-data-hub", "kata-agent", "api-server-rest", "agent-protocol-forwarder"}

// property is one of a unit.
func property(t *testing.T, unit, name string) string {
	t.Helper()
	return output(t, "/usr/bin/systemctl", "show", "--value", "-p", name, unit+".service")
}

// eventually waits until what returns nil.
func eventually(t *testing.T, what func() error) {
	t.Helper()
	late := time.NewTimer(upTime)
	defer late.Stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	for {
		err := what()
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-late.C:
			t.Fatalf("%v\n%s\n%s", err, output(t, "/usr/bin/systemctl", "--no-pager", "list-units", "--type=service,path", "--all", "--plain"),
				output(t, "/usr/bin/journalctl", "-b", "--no-pager", "-o", "short-monotonic", "-n", "150"))
		}
	}
}

func TestInGuestImagePodEveryUnitIsActive(t *testing.T) {
	inGuest(t)
	for _, unit := range append([]string{"process-user-data", "scratch-storage", "netns@podns"}, daemons...) {
		eventually(t, func() error {
			if state := property(t, unit, "ActiveState"); state != "active" {
				return fmt.Errorf("%s is %s", unit, state)
			}
			return nil
		})
	}
	if failed := output(t, "/usr/bin/systemctl", "--failed", "--no-legend", "--plain"); failed != "" {
		t.Errorf("failed: %s", failed)
	}
}

func TestInGuestImagePodHostCreatesASandbox(t *testing.T) {
	inGuest(t)
	eventually(t, func() error {
		calls, err := agenttest.ReadJournal(agentJournal)
		if errors.Is(err, fs.ErrNotExist) || err == nil && calls[sandboxCall] == 0 {
			return errors.New("no host has created a sandbox")
		}
		return err
	})
}

func TestInGuestImagePodFilesAreThere(t *testing.T) {
	inGuest(t)
	for _, name := range []string{"aa.toml", "cdh.toml", "policy.rego", "apf.json", "auth.json", "initdata", "initdata.digest"} {
		if info, err := os.Stat("/run/peerpod/" + name); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestInGuestImagePodScratchIsEncrypted(t *testing.T) {
	inGuest(t)
	var st unix.Statfs_t
	if err := unix.Statfs("/run/kata-containers/image", &st); err != nil || st.Type != unix.EXT4_SUPER_MAGIC {
		t.Fatalf("type %x, %v", st.Type, err)
	}
	var info unix.Stat_t
	if err := unix.Stat("/run/kata-containers/image", &info); err != nil {
		t.Fatal(err)
	}
	id, err := os.ReadFile(fmt.Sprintf("/sys/dev/block/%d:%d/dm/uuid", unix.Major(info.Dev), unix.Minor(info.Dev)))
	if err != nil || !strings.HasPrefix(string(id), "CRYPT-LUKS2-") {
		t.Errorf("its device is %q, %v", id, err)
	}
}

func TestInGuestImagePodNetworkIsThere(t *testing.T) {
	inGuest(t)
	if out := output(t, "/usr/bin/ip", "-n", "podns", "-4", "-o", "addr", "show", "dev", "eth0"); !strings.Contains(out, podAddress) {
		t.Errorf("addresses: %s", out)
	}
	if out := output(t, "/usr/bin/ip", "-n", "podns", "route"); !strings.Contains(out, "default via 10.244.1.1 dev eth0") {
		t.Errorf("routes: %s", out)
	}
}

const podAddress = "10.244.1.5/24"

func TestInGuestImagePodDoctorIsContent(t *testing.T) {
	inGuest(t)
	out, err := exec.CommandContext(t.Context(), "/usr/local/bin/sealpod", "doctor", "--json").Output()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	var doc struct {
		Checks []struct {
			Check, Status string
			Findings      []struct{ Status, Text string }
		}
	}
	if err := json.Unmarshal(out, &doc); err != nil || len(doc.Checks) == 0 {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, c := range doc.Checks {
		switch c.Status {
		case "failed":
			t.Errorf("%s: %+v", c.Check, c.Findings)
		case "warning":
			fmt.Printf("NOTE doctor on %s: %+v\n", c.Check, c.Findings)
		}
	}
}

func TestInGuestImagePodKilledDaemonsComeBack(t *testing.T) {
	inGuest(t)
	for _, unit := range daemons {
		t.Run(unit, func(t *testing.T) {
			pid, err := strconv.Atoi(property(t, unit, "MainPID"))
			if err != nil || pid < 2 {
				t.Fatalf("its process is %d, %v", pid, err)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			eventually(t, func() error {
				now, err := strconv.Atoi(property(t, unit, "MainPID"))
				if err != nil {
					return err
				}
				if state := property(t, unit, "ActiveState"); state != "active" || now == pid || now == 0 {
					return fmt.Errorf("%s is %s as process %d, was %d", unit, state, now, pid)
				}
				return nil
			})
			fmt.Printf("FIGURE %s back after %.2f s\n", unit, time.Since(began).Seconds())
		})
	}
	TestInGuestImagePodEveryUnitIsActive(t)
	TestInGuestImagePodNetworkIsThere(t)
	TestInGuestImagePodDoctorIsContent(t)
	if sum := residentPSS(t, "idle"); sum > maxPSS {
		t.Errorf("%d kB, at most %d are wanted", sum, maxPSS)
	}
}
