package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/sample"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
)

// The words for the makers' own services. A file or directory of that name is
// meant by a path with a slash.
const (
	amdKDS   = "kds"
	intelPCS = "pcs"
)

// verifiers are all kinds of TEE this build can verify. Nothing is asked of the
// sources here: that waits for the first evidence that needs it.
func (o relyingPartyOptions) verifiers() ([]verifier.Verifier, error) {
	var keys []snp.Source
	for _, text := range o.snpVCEK {
		s, err := vcekSource(text)
		if err != nil {
			return nil, fmt.Errorf("--snp-vcek: %w (%w)", err, cli.ErrUsage)
		}
		keys = append(keys, s)
	}
	collateral, err := collateralSource(o.tdxCollateral)
	if err != nil {
		return nil, fmt.Errorf("--tdx-collateral: %w (%w)", err, cli.ErrUsage)
	}
	amd, err := snp.New(snp.Config{Sources: keys})
	if err != nil {
		return nil, err
	}
	intel, err := tdx.New(tdx.Config{Source: collateral})
	if err != nil {
		return nil, err
	}
	return []verifier.Verifier{sample.CPU{}, sample.Device{}, amd, intel}, nil
}

// vcekSource is "kds" or a directory.
func vcekSource(text string) (snp.Source, error) {
	if text == amdKDS {
		return snp.NewKDS(snp.DefaultKDS, nil, nil)
	}
	info, err := os.Stat(text)
	if err != nil {
		return nil, fmt.Errorf("%w; give %q for AMD's key server, or a directory with vcek/CHIP/vcek.der", err, amdKDS)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is no directory; the key of a chip is in DIRECTORY/vcek/CHIP/vcek.der", text)
	}
	return snp.OfflineStore(text), nil
}

// collateralSource is "pcs", the URL of a caching service or a file.
func collateralSource(text string) (tdx.Source, error) {
	switch {
	case text == intelPCS:
		return tdx.NewPCS(tdx.IntelPCS, "", nil)
	case strings.HasPrefix(text, "https://"):
		return tdx.NewPCS(text, "", nil)
	case strings.Contains(text, "://"):
		return nil, fmt.Errorf("%s: a caching service is asked over https only", text)
	}
	info, err := os.Stat(text)
	if err != nil {
		return nil, fmt.Errorf("%w; give %q for Intel's service, the https URL of a PCCS, or a file of PcsClientTool", err, intelPCS)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no file; it must be the JSON that PcsClientTool writes", text)
	}
	return tdx.File{Path: text}, nil
}
