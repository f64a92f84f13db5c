package azure

import (
	"context"
	"log/slog"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// tctiEnv makes this binary a pipe to the socket it names, for tpm2-tools.
const tctiEnv = "SEALPOD_TEST_TCTI"

func TestMain(m *testing.M) {
	if path := os.Getenv(tctiEnv); path != "" {
		os.Exit(pipe(path))
	}
	goleak.VerifyTestMain(m)
}

// machine is a VM and where it is.
type machine struct {
	*VM
	root string
}

// tpm returns the path of the guest's TPM.
func (m machine) tpm() string { return m.root + "/dev/tpmrm0" }

// boot starts a VM with what is set in o, on the hardware of a TDX machine
// unless o has another.
func boot(t testing.TB, o Options) machine {
	t.Helper()
	testenv.Tool(t, "swtpm")
	if o.Hardware.Report == nil {
		o.Hardware = tdxHardware(t, tdx.Launch{})
	}
	if o.Kernel == nil {
		o.Kernel, o.CommandLine = []byte("a kernel"), "quiet"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	// Not t.TempDir: its path grows with the test's name.
	root, err := os.MkdirTemp("", "az")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(root) })
	o.Root, o.Dir = root, t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	v, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("closing: %v", err)
		}
		if left, err := os.ReadDir(o.Dir); err != nil || len(left) != 0 {
			t.Errorf("left in the TPM's directory: %v, %v", left, err)
		}
		if left, err := os.ReadDir(root + "/dev"); err != nil || len(left) != 0 {
			t.Errorf("left in the machine's directory: %v, %v", left, err)
		}
	})
	return machine{v, root}
}

func tdxHardware(t testing.TB, l tdx.Launch) Hardware {
	t.Helper()
	p, err := tdx.Open("", tdx.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return TDX(p, p.NewTD(l))
}

func snpHardware(t testing.TB, l snp.Launch) Hardware {
	t.Helper()
	c, err := snp.Open("", snp.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return SNP(c, snp.NewGuest(l))
}
