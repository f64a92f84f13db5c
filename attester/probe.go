package attester

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/sealpod/sealpod/podvm"
)

// probes look for one kind of TEE each and return its wire name, or "". They
// are in upstream's order: the first hit wins. A tpm is missing on purpose:
// ordinary machines have one, so it counts only when its attestation key can be
// read, which takes the attester that is not there yet.
func probes() []func(Options) string {
	return []func(Options) string{
		probeTDX, probeSGX, probeAzure,
		func(o Options) string { return name("snp", o.exists("/sys/devices/platform/sev-guest")) },
		func(o Options) string { return name("csv", o.exists("/dev/csv-guest")) },
		func(o Options) string {
			return name("cca", runtime.GOARCH == "arm64" && o.tsmProvider() == "arm_cca_guest\n")
		},
		func(o Options) string {
			return name("se", runtime.GOARCH == "s390x" && o.text("/sys/firmware/uv/prot_virt_guest") == "1\n")
		},
	}
}

func name(tee string, found bool) string {
	if found {
		return tee
	}
	return ""
}

func probeTDX(o Options) string {
	return name("tdx", o.exists("/dev/tdx_guest") || o.tsmProvider() == "tdx_guest\n")
}

func probeSGX(o Options) string {
	_, occlum := o.Host.Env("OCCLUM")
	return name("sgx", occlum || strings.TrimSpace(o.text("/dev/attestation/attestation_type")) == "dcap")
}

func probeAzure(o Options) string {
	switch o.hclReportType() {
	case 4:
		return "az-tdx-vtpm"
	case 2:
		return "az-snp-vtpm"
	}
	return ""
}

func (o Options) exists(path string) bool {
	_, err := os.Stat(o.Host.Path(path))
	return err == nil
}

// text returns the content of a short file, "" if it cannot be read.
func (o Options) text(path string) string {
	b, err := podvm.ReadFileMax(o.Host.Path(path), 256)
	if err != nil {
		return ""
	}
	return string(b)
}

// tsmReports is where the kernel makes a report entry of each new directory.
const tsmReports = "/sys/kernel/config/tsm/report"

// tsmProvider returns who signs the reports of this kernel, with the line end
// the kernel writes, or "". The entry made for it is removed again.
func (o Options) tsmProvider() string {
	entry, err := os.MkdirTemp(o.Host.Path(tsmReports), "sealpod-probe-")
	if err != nil {
		return ""
	}
	provider := o.text(tsmReports + "/" + filepath.Base(entry) + "/provider")
	// configfs removes the files of an entry with it.
	if err := os.Remove(entry); err != nil {
		o.Log.Warn("A report entry stays behind", "err", err)
	}
	return provider
}

// Azure's paravisor keeps its report in this NV index of the virtual TPM.
// Source: az-cvm-vtpm 0.8.1 src/hcl, src/vtpm.
const (
	hclIndex      = 0x01400001
	hclMagic      = "HCLA"   // bytes 0 to 3
	hclTypeOffset = 1216 + 8 // little-endian u32: 2 SNP, 4 TDX
	hclMinSize    = hclTypeOffset + 4
)

// hclReportType returns the report type of an Azure confidential VM, 0 on any
// other machine.
func (o Options) hclReportType() uint32 {
	tpm, err := o.openTPM()
	if err != nil {
		return 0
	}
	defer tpm.Close() //nolint:errcheck // nothing was written
	pub, err := tpm2.NVReadPublic{NVIndex: tpm2.TPMHandle(hclIndex)}.Execute(tpm)
	if err != nil {
		return 0
	}
	if area, err := pub.NVPublic.Contents(); err != nil || area.DataSize < hclMinSize {
		return 0
	}
	magic, err := readNV(tpm, pub.NVName, 0)
	if err != nil || string(magic) != hclMagic {
		return 0
	}
	kind, err := readNV(tpm, pub.NVName, hclTypeOffset)
	if err != nil {
		return 0
	}
	return binary.LittleEndian.Uint32(kind)
}

// readNV reads 4 bytes of the report at offset.
func readNV(tpm transport.TPM, name tpm2.TPM2BName, offset uint16) ([]byte, error) {
	out, err := tpm2.NVRead{
		AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NVIndex:    tpm2.NamedHandle{Handle: tpm2.TPMHandle(hclIndex), Name: name},
		Size:       4,
		Offset:     offset,
	}.Execute(tpm)
	if err != nil {
		return nil, fmt.Errorf("reading NV index %#x: %w", hclIndex, err)
	}
	if len(out.Data.Buffer) != 4 {
		return nil, fmt.Errorf("reading NV index %#x: %d bytes, want 4", hclIndex, len(out.Data.Buffer))
	}
	return out.Data.Buffer, nil
}

// openTPM opens the TPM through the kernel's resource manager, which shares it,
// or the socket a simulated machine has in its place.
func (o Options) openTPM() (transport.TPMCloser, error) {
	path := o.Host.Path("/dev/tpmrm0")
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&fs.ModeSocket != 0 {
		return linuxudstpm.Open(path)
	}
	return linuxtpm.Open(path)
}
