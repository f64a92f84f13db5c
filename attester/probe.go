package attester

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/sealpod/sealpod/attester/azvtpm"
	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/podvm"
)

// Sign is a trace of a TEE that a probe found.
type Sign struct {
	TEE string `json:"tee"` // the wire name
	By  string `json:"by"`  // what told, as in "/dev/tdx_guest"
}

// Signs returns everything that Detect goes by, in its order: the first one that is
// allowed is the TEE that is used. None means sample.
func Signs(ctx context.Context, o Options) []Sign {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	var signs []Sign
	for _, probe := range probes() {
		if s := probe(ctx, o); s.TEE != "" {
			signs = append(signs, s)
		}
	}
	return signs
}

// probes look for one kind of TEE each; the zero Sign is nothing. They are in
// upstream's order: the first hit wins. A probe that is kept from looking says so
// at WARN, since its nothing then means nothing.
func probes() []func(context.Context, Options) Sign {
	return []func(context.Context, Options) Sign{
		probeTDX, probeSGX, probeAzure,
		func(_ context.Context, o Options) Sign { return o.path("snp", "/sys/devices/platform/sev-guest") },
		func(_ context.Context, o Options) Sign { return o.path("csv", "/dev/csv-guest") },
		func(_ context.Context, o Options) Sign {
			return sign("cca", tsmReports, runtime.GOARCH == "arm64" && o.tsmProvider() == "arm_cca_guest\n")
		},
		func(_ context.Context, o Options) Sign {
			const guest = "/sys/firmware/uv/prot_virt_guest"
			return sign("se", guest, runtime.GOARCH == "s390x" && o.text(guest) == "1\n")
		},
		probeTPM,
	}
}

// sign is that of tee if it was found.
func sign(tee, by string, found bool) Sign {
	if found {
		return Sign{tee, by}
	}
	return Sign{}
}

func (o Options) path(tee, path string) Sign { return sign(tee, path, o.exists(path)) }

func probeTDX(_ context.Context, o Options) Sign {
	if s := o.path("tdx", "/dev/tdx_guest"); s.TEE != "" {
		return s
	}
	return sign("tdx", tsmReports, o.tsmProvider() == "tdx_guest\n")
}

func probeSGX(_ context.Context, o Options) Sign {
	if _, occlum := o.Host.Env("OCCLUM"); occlum {
		return Sign{"sgx", "the environment variable OCCLUM"}
	}
	const kind = "/dev/attestation/attestation_type"
	return sign("sgx", kind, strings.TrimSpace(o.text(kind)) == "dcap")
}

func probeAzure(ctx context.Context, o Options) Sign {
	kind, err := azvtpm.Detect(ctx, o.Host)
	if err != nil {
		o.Log.Warn("This may be an Azure confidential VM, but its TPM does not tell", "err", err)
	}
	return sign(kind.TEE(), "the report of the host in the vTPM", kind.TEE() != "")
}

// probeTPM looks for a TPM with an attestation key: a TPM alone is what
// ordinary machines have, and upstream takes one for a TEE.
func probeTPM(ctx context.Context, o Options) Sign {
	found, err := tpm.Detect(ctx, o.Host)
	if err != nil {
		o.Log.Warn("This machine's TPM cannot be used for evidence", "err", err)
	}
	return sign(tpm.TEE, "a TPM with an attestation key", found)
}

func (o Options) exists(path string) bool {
	_, err := os.Stat(o.Host.Path(path))
	o.sayDenied(err)
	return err == nil
}

// text returns the content of a short file, "" if it cannot be read.
func (o Options) text(path string) string {
	b, err := podvm.ReadFileMax(o.Host.Path(path), 256)
	if err != nil {
		o.sayDenied(err)
		return ""
	}
	return string(b)
}

// sayDenied keeps a lack of privilege from passing for the lack of a TEE.
func (o Options) sayDenied(err error) {
	if errors.Is(err, fs.ErrPermission) {
		o.Log.Warn("Looking for a TEE is not permitted to this process", "err", err)
	}
}

// tsmReports is where the kernel makes a report entry of each new directory.
const tsmReports = "/sys/kernel/config/tsm/report"

// tsmProvider returns who signs the reports of this kernel, with the line end
// the kernel writes, or "". The entry made for it is removed again.
func (o Options) tsmProvider() string {
	entry, err := os.MkdirTemp(o.Host.Path(tsmReports), "sealpod-probe-")
	if err != nil {
		o.sayDenied(err)
		return ""
	}
	provider := o.text(tsmReports + "/" + filepath.Base(entry) + "/provider")
	// configfs removes the files of an entry with it.
	if err := os.Remove(entry); err != nil {
		o.Log.Warn("A report entry stays behind", "err", err)
	}
	return provider
}

// nvidiaGPUs returns how many NVIDIA GPUs this machine has: PCI display or 3D
// controllers of that vendor, or one if only the driver shows.
func (o Options) nvidiaGPUs() int {
	const devices = "/sys/bus/pci/devices"
	entries, err := os.ReadDir(o.Host.Path(devices))
	o.sayDenied(err)
	n := 0
	for _, e := range entries {
		dir := devices + "/" + e.Name()
		if strings.TrimSpace(o.text(dir+"/vendor")) != "0x10de" {
			continue
		}
		if class := o.text(dir + "/class"); strings.HasPrefix(class, "0x0300") || strings.HasPrefix(class, "0x0302") {
			n++
		}
	}
	if n == 0 && o.exists("/proc/driver/nvidia") {
		n = 1
	}
	return n
}
