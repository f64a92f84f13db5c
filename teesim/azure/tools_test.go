package azure

import (
	"bytes"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm/testenv"
)

// What tpm2-tools, another implementation, makes of the TPM. They have no TCTI
// for a plain socket; this binary is the command that tcti-cmd talks to.
func TestTPM2Tools(t *testing.T) {
	m := boot(t, Options{})
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(t *testing.T, name string, args ...string) []byte {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), testenv.Tool(t, name), args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=cmd:"+self, tctiEnv+"="+m.tpm(),
			"GORACE=atexit_sleep_ms=0") // or this binary takes a second to end
		var complaint bytes.Buffer
		cmd.Stderr = &complaint
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, complaint.String())
		}
		return out
	}
	t.Run("report", func(t *testing.T) {
		report := run(t, "tpm2_nvread", "-C", "o", "0x01400001")
		if len(report) != hclSize || !bytes.HasPrefix(report, []byte("HCLA")) {
			t.Errorf("%d bytes, which start %q", len(report), report[:min(len(report), 8)])
		}
		public := string(run(t, "tpm2_nvreadpublic", "0x01400001"))
		for _, want := range []string{"size: 2048", "friendly: sha256", "authwrite|ownerread|authread|no_da|written|platformcreate"} {
			if !strings.Contains(public, want) {
				t.Errorf("no %q in\n%s", want, public)
			}
		}
	})
	t.Run("key", func(t *testing.T) {
		public := string(run(t, "tpm2_readpublic", "-c", "0x81000003", "-f", "pem", "-o", "ak.pem"))
		for _, want := range []string{
			"fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign", "value: rsassa", "bits: 2048",
		} {
			if !strings.Contains(public, want) {
				t.Errorf("no %q in\n%s", want, public)
			}
		}
	})
	t.Run("quote", func(t *testing.T) {
		nonce := hex.EncodeToString(bytes.Repeat([]byte{0xab}, 48))
		run(t, "tpm2_quote", "-c", "0x81000003", "-l", "sha256:all", "-q", nonce, "-m", "quote", "-s", "signature", "-o", "pcrs")
		run(t, "tpm2_checkquote", "-u", "ak.pem", "-m", "quote", "-s", "signature", "-f", "pcrs", "-q", nonce)
	})
	t.Run("PCRs", func(t *testing.T) {
		want, err := m.PCR(11)
		if err != nil {
			t.Fatal(err)
		}
		if out := strings.ToLower(string(run(t, "tpm2_pcrread", "sha256:11"))); !strings.Contains(out, hex.EncodeToString(want)) {
			t.Errorf("no %x in\n%s", want, out)
		}
	})
	t.Run("objects", func(t *testing.T) { // in files between the commands, as with the kernel's resource manager
		run(t, "tpm2_createprimary", "-C", "o", "-c", "primary.ctx")
		run(t, "tpm2_create", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv")
		run(t, "tpm2_load", "-C", "primary.ctx", "-u", "key.pub", "-r", "key.priv", "-c", "key.ctx")
		run(t, "tpm2_readpublic", "-c", "key.ctx")
		run(t, "tpm2_getrandom", "8")
	})
}
