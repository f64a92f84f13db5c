package userdata

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// withTPM gives the machine a TPM with hooks before it, and user data. Its root is
// another then.
func (m *machine) withTPM(chip *vtpmtest.TPM, userData string, hooks ...vtpmtest.Hook) {
	m.t.Helper()
	m.conf.Host = chip.Machine(m.t, hooks...)
	m.put(mountedFile, userData)
}

func pcr8(t *testing.T, chip *vtpmtest.TPM) []byte {
	t.Helper()
	out, err := tpm2.PCRRead{PCRSelectionIn: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{
		Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0, 1, 0},
	}}}}.Execute(chip)
	if err != nil {
		t.Fatal(err)
	}
	return out.PCRValues.Digests[0].Buffer
}

// extended is PCR 8 after one extension.
func extended(digest []byte) []byte {
	sum := sha256.Sum256(append(make([]byte, 32), digest[:32]...))
	return sum[:]
}

func fromHex(t *testing.T, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestMeasure(t *testing.T) {
	long := strings.Replace(document, "sha256", "sha384", 1)
	sum384 := sha512.Sum384([]byte(long))
	for name, tt := range map[string]struct {
		userData string
		digest   []byte
	}{
		"init data":    {podUserData(t), fromHex(t, documentDigest)},
		"none":         {cloudConfig(forwarderFile, "{}"), fromHex(t, dummyDigest)},
		"SHA-384, cut": {cloudConfig(initDataFile, encoded(t, long)), sum384[:]},
	} {
		t.Run(name, func(t *testing.T) {
			chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
			extensions := 0
			m := newMachine(t)
			m.withTPM(chip, tt.userData, func(cmd []byte) []byte {
				if vtpmtest.Command(cmd) == tpm2.TPMCCPCRExtend {
					extensions++
					if exists(m.conf.Host, dir) {
						t.Error("files are there before they are measured")
					}
				}
				return nil
			})
			for range 3 { // the unit is started again
				if err := m.run(); err != nil {
					t.Fatal(err)
				}
			}
			if got := pcr8(t, chip); !bytes.Equal(got, extended(tt.digest)) || extensions != 1 {
				t.Errorf("PCR 8 is %x after %d extensions", got, extensions)
			}
			if !strings.Contains(m.log.String(), "is measured into PCR 8") {
				t.Error(m.log)
			}
		})
	}
}

// The attack: a host that lets the VM measure good init data and gives it other
// init data when the unit runs again.
func TestOtherInitDataAfterTheFirst(t *testing.T) {
	chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	m := newMachine(t)
	m.withTPM(chip, podUserData(t))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	m.put(mountedFile, cloudConfig(forwarderFile, forwarderText, initDataFile, encoded(t, document+"# other\n")))
	m.refused(ErrMeasure, "PCR 8 holds something other than this init data")
	m.refused(tpm.ErrInitData)
	if got := m.files(); !maps.Equal(got, podFiles(t)) {
		t.Errorf("got %q", got)
	}
}

func TestPCR8IsTaken(t *testing.T) {
	chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	chip.Extend(t, 8, sha256.Sum256([]byte("grub_cmd: linux /vmlinuz")))
	taken := pcr8(t, chip)
	m := newMachine(t)
	m.withTPM(chip, podUserData(t))
	m.refused(ErrMeasure, "GRUB", "--no-tpm")
	m.conf.NoTPM = true
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(pcr8(t, chip), taken) || !strings.Contains(m.log.String(), "level=WARN msg=\"The init data is not measured into PCR 8, as asked for\"") {
		t.Error(m.log)
	}
}

func TestTPMRefuses(t *testing.T) {
	for name, command := range map[string]tpm2.TPMCC{"to read": tpm2.TPMCCPCRRead, "to extend": tpm2.TPMCCPCRExtend} {
		t.Run(name, func(t *testing.T) {
			chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
			m := newMachine(t)
			m.withTPM(chip, podUserData(t), func(cmd []byte) []byte {
				if vtpmtest.Command(cmd) == command {
					return vtpmtest.Frame(tpm2.TPMRCFailure, false, nil)
				}
				return nil
			})
			m.refused(ErrMeasure, "TPM_RC_FAILURE")
			m.refused(tpm2.TPMRCFailure)
		})
	}
}

// A TPM that says it extended and did not is found out.
func TestTPMOnlySaysItExtends(t *testing.T) {
	chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	m := newMachine(t)
	m.withTPM(chip, podUserData(t), func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCPCRExtend {
			return vtpmtest.Frame(tpm2.TPMRCSuccess, true, nil)
		}
		return nil
	})
	m.refused(ErrMeasure)
}

// The attestation agent finds and binds what was measured, and nothing else.
func TestTheAgentBindsWhatWasMeasured(t *testing.T) {
	chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	m := newMachine(t)
	m.withTPM(chip, podUserData(t))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	bind := func() (server.InitData, error) {
		tees := &attester.Set{Primary: tpm.New(m.conf.Host)}
		return server.BindInitData(t.Context(), server.Config{}, tees, m.conf.Host, "", "", m.conf.Log)
	}
	if got, err := bind(); err != nil || got.Document == nil || got.Document.Text != document {
		t.Errorf("got %+v, %v", got, err)
	}
	m.put(initDataFile, encoded(t, document+"# changed since\n"))
	if _, err := bind(); !errors.Is(err, tpm.ErrInitData) {
		t.Errorf("changed init data: %v", err)
	}
}

func TestMachineWithoutTPM(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, podUserData(t))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(m.log.String(), "level=INFO msg=\"This machine has no TPM") {
		t.Error(m.log)
	}
}

// A TPM that the firmware has is waited for: a driver may come late, and a host
// must not get around the measurement by that.
func TestTPMThatComesLate(t *testing.T) {
	chip := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	m := newMachine(t)
	m.withTPM(chip, podUserData(t))
	m.put(tpmTable, "TPM2")
	device := m.conf.Host.Path("/dev/tpmrm0")
	hidden := filepath.Join(filepath.Dir(device), "hidden")
	if err := os.Rename(device, hidden); err != nil {
		t.Fatal(err)
	}
	m.refused(ErrMeasure, "the kernel shows no device of it")
	m.refused(tpm.ErrNoTPM)
	m.paused = func(try int) {
		if try == 3 {
			if err := os.Rename(hidden, device); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if got := pcr8(t, chip); !bytes.Equal(got, extended(fromHex(t, documentDigest))) {
		t.Errorf("PCR 8 is %x", got)
	}
}
