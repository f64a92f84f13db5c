// Package trust makes the verifiers of a relying party from what its owner
// trusts: AMD and Intel, or a simulator in their place.
//
// Data path: `sealctl relying-party` and the demo hand the verifiers to package
// relyingparty.
//
// Trust: what is read here is the owner's own configuration. A simulator is
// trusted only when it is named, and then the makers are not: a relying party
// speaks either for real machines or for simulated ones.
package trust

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/azvtpm"
	"github.com/sealpod/sealpod/relyingparty/verifier/sample"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
	"github.com/sealpod/sealpod/relyingparty/verifier/tpm"
)

// The words for the makers' own services. A file or directory of that name is
// meant by a path with a slash.
const (
	AMDKDS   = "kds"
	IntelPCS = "pcs"
)

// Options say whom to trust. Exactly one of Simulator and the pair of SNPVCEK
// and TDXCollateral counts.
type Options struct {
	// SNPVCEK are the places where the key of an SNP chip is looked up, in order:
	// AMDKDS or directories.
	SNPVCEK []string
	// TDXCollateral is IntelPCS, the https URL of a caching service or a file.
	TDXCollateral string
	// Simulator is the directory with the public half of simulated makers, as
	// package teesim writes it; "" means the real ones.
	Simulator string
}

// Verifiers are all kinds of TEE this build can verify. Nothing is asked of the
// services here: that waits for the first evidence that needs it.
func Verifiers(o Options) ([]verifier.Verifier, error) {
	if o.Simulator != "" {
		return simulated(o.Simulator)
	}
	var keys []snp.Source
	for _, text := range o.SNPVCEK {
		s, err := vcekSource(text)
		if err != nil {
			return nil, fmt.Errorf("--snp-vcek: %w", err)
		}
		keys = append(keys, s)
	}
	collateral, err := collateralSource(o.TDXCollateral)
	if err != nil {
		return nil, fmt.Errorf("--tdx-collateral: %w", err)
	}
	amd, err := snp.New(snp.Config{Sources: keys})
	if err != nil {
		return nil, err
	}
	intel, err := tdx.New(tdx.Config{Source: collateral})
	if err != nil {
		return nil, err
	}
	return all(amd, intel), nil
}

// all are the verifiers that follow from those of the hardware; nil stands for
// a maker that is not trusted.
func all(amd *snp.Verifier, intel *tdx.Verifier) []verifier.Verifier {
	out := []verifier.Verifier{sample.CPU{}, sample.Device{}, tpm.New()}
	if amd != nil {
		out = append(out, amd, azvtpm.NewSNP(amd))
	}
	if intel != nil {
		out = append(out, intel, azvtpm.NewTDX(intel))
	}
	return out
}

// vcekSource is "kds" or a directory.
func vcekSource(text string) (snp.Source, error) {
	if text == AMDKDS {
		return snp.NewKDS(snp.DefaultKDS, nil, nil)
	}
	info, err := os.Stat(text)
	if err != nil {
		return nil, fmt.Errorf("%w; give %q for AMD's key server, or a directory with vcek/CHIP/vcek.der", err, AMDKDS)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory; the key of a chip is in DIRECTORY/vcek/CHIP/vcek.der", text)
	}
	return snp.OfflineStore(text), nil
}

// collateralSource is "pcs", the URL of a caching service or a file.
func collateralSource(text string) (tdx.Source, error) {
	switch {
	case text == IntelPCS:
		return tdx.NewPCS(tdx.IntelPCS, "", nil)
	case strings.HasPrefix(text, "https://"):
		return tdx.NewPCS(text, "", nil)
	case strings.Contains(text, "://"):
		return nil, fmt.Errorf("%s: a caching service is asked over https only", text)
	}
	info, err := os.Stat(text)
	if err != nil {
		return nil, fmt.Errorf("%w; give %q for Intel's service, the https URL of a PCCS, or a file of PcsClientTool", err, IntelPCS)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file; it must be the JSON that PcsClientTool writes", text)
	}
	return tdx.File{Path: text}, nil
}

// errNoSimulator says that a directory holds nothing of a simulator.
var errNoSimulator = errors.New("nothing of a simulator here")
