package azure

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// Kinds of hardware, as an HCL report numbers them.
// Source: az-cvm-vtpm 0.8.1 src/hcl.
const (
	KindSNP = 2
	KindTDX = 4
)

// Hardware is what the paravisor runs on. TDX and SNP make it; a test may
// replace a function. All are safe for concurrent use.
type Hardware struct {
	// Kind is KindSNP or KindTDX.
	Kind uint32
	// Report returns the hardware's report over that report data: 1184 bytes of
	// SNP, 1024 of TDX.
	Report func(reportData [64]byte) ([]byte, error)
	// Quote makes a quote of a TD report; nil where the metadata service has none.
	Quote func(tdReport []byte) ([]byte, error)
	// Certification returns AMD's certificates; nil likewise.
	Certification func() (Certification, error)
	// ReferenceValues are those of the hardware, by the names of the default
	// policy. The VM adds those of the guest's image.
	ReferenceValues func() map[string]any
}

// Certification is what the metadata service says about an SNP machine.
// Source: Azure, "Trusted Hardware Identity Management", AMD.
type Certification struct {
	// VCEK is the certificate of the key that signs reports, and Chain those of
	// the ASK and the ARK, in PEM.
	VCEK  string `json:"vcekCert"`
	Chain string `json:"certificateChain"`
	// TCB is the TCB_VERSION of the firmware, 16 hexadecimal digits.
	TCB string `json:"tcbm"`
	// CacheControl is for how many seconds this may be kept.
	CacheControl string `json:"cacheControl"`
}

// TDX is a trust domain as hardware. What it was launched with is the paravisor:
// the guest's kernel is in Options.
func TDX(p *tdx.Platform, td *tdx.TD) Hardware {
	return Hardware{
		Kind: KindTDX,
		Report: func(data [64]byte) ([]byte, error) {
			r := td.Report(data)
			return r[:], nil
		},
		Quote: p.QuoteOfReport,
		ReferenceValues: func() map[string]any {
			values := td.ReferenceValues()
			// The rest is about a kernel that the firmware started.
			return map[string]any{"mr_td": values["mr_td"], "xfam": values["xfam"]}
		},
	}
}

// SNP is a guest of an AMD chip as hardware; see TDX about its launch.
func SNP(c *snp.Chip, g *snp.Guest) Hardware {
	return Hardware{
		Kind:            KindSNP,
		Report:          func(data [64]byte) ([]byte, error) { return c.Report(g, data, 0) },
		Certification:   func() (Certification, error) { return certification(c, g) },
		ReferenceValues: func() map[string]any { return renamed(g) },
	}
}

func certification(c *snp.Chip, g *snp.Guest) (Certification, error) {
	vcek, err := c.VCEK(c.TCB(g))
	if err != nil {
		return Certification{}, fmt.Errorf("certifying the chip's key: %w", err)
	}
	report, err := c.Report(g, [64]byte{}, 0)
	if err != nil {
		return Certification{}, fmt.Errorf("reading the chip's firmware versions: %w", err)
	}
	var tcb [8]byte
	const reportedTCB = 0x180 // little-endian. Source: AMD 56860, attestation report
	binary.BigEndian.PutUint64(tcb[:], binary.LittleEndian.Uint64(report[reportedTCB:]))
	ark, ask, _ := c.Roots()
	return Certification{
		VCEK: certificatePEM(vcek.Raw), Chain: certificatePEM(ask.Raw) + certificatePEM(ark.Raw),
		TCB: strings.ToUpper(hex.EncodeToString(tcb[:])), CacheControl: "86400",
	}, nil
}

func certificatePEM(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// renamed gives an SNP guest's reference values the names and the form they
// have on Azure: lists of text, the measurement in base64.
// Source: trustee attestation-service/docs/policy.md and
// deps/verifier/src/az_snp_vtpm at 78962cd4.
func renamed(g *snp.Guest) map[string]any {
	values := g.ReferenceValues()
	measurement := g.Measurement()
	out := map[string]any{"measurement": []string{base64.StdEncoding.EncodeToString(measurement[:])}}
	for _, name := range [][2]string{
		{"snp_bootloader", "tcb_bootloader"}, {"snp_microcode", "tcb_microcode"},
		{"snp_snp_svn", "tcb_snp"}, {"snp_tee_svn", "tcb_tee"},
		{"snp_smt_enabled", "smt_enabled"}, {"snp_tsme_enabled", "tsme_enabled"},
		{"snp_guest_abi_major", "abi_major"}, {"snp_guest_abi_minor", "abi_minor"},
		{"snp_single_socket", "single_socket"}, {"snp_smt_allowed", "smt_allowed"},
	} {
		text := []string{}
		switch v := values[name[0]].(type) {
		case []int:
			for _, n := range v {
				text = append(text, strconv.Itoa(n))
			}
		default:
			text = append(text, fmt.Sprint(v))
		}
		out[name[1]] = text
	}
	return out
}

// ReferenceValues are what a relying party with the default policy must know to
// affirm this VM: its hardware's, and the PCRs that the image of Options makes.
func (v *VM) ReferenceValues() map[string]any {
	values := maps.Clone(v.hardware.ReferenceValues())
	prefix := "tdx"
	if v.hardware.Kind == KindSNP {
		prefix = "snp"
	}
	for _, pcr := range []int{imagePCR, kernelPCR} {
		value := replay(v.boot, pcr)
		values[fmt.Sprintf("%s_pcr%02d", prefix, pcr)] = []string{hex.EncodeToString(value[:])}
	}
	return values
}
