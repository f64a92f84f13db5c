package trust

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty/verifier"
	"github.com/sealpod/sealpod/relyingparty/verifier/snp"
	"github.com/sealpod/sealpod/relyingparty/verifier/tdx"
)

// maxCertificates caps a PEM file of roots, in bytes.
const maxCertificates = 64 << 10

// simulated returns verifiers that trust the simulated makers of a directory,
// those of them that are there, and no others.
func simulated(dir string) ([]verifier.Verifier, error) {
	amd, err := simulatedAMD(dir)
	if err != nil {
		return nil, fmt.Errorf("--trust-simulator: AMD: %w", err)
	}
	intel, err := simulatedIntel(dir)
	if err != nil {
		return nil, fmt.Errorf("--trust-simulator: Intel: %w", err)
	}
	if amd == nil && intel == nil {
		return nil, fmt.Errorf("--trust-simulator: %s: %w: it must be the trust directory that sealctl tee-sim made", dir, errNoSimulator)
	}
	return all(amd, intel), nil
}

func simulatedAMD(dir string) (*snp.Verifier, error) {
	roots := map[string]snp.Root{}
	for _, product := range []string{snp.Milan, snp.Genoa, snp.Turin} {
		text, err := podvm.ReadFileMax(filepath.Join(dir, "snp-"+product+".pem"), maxCertificates)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if roots[product], err = snp.ParseRoot(text); err != nil {
			return nil, fmt.Errorf("%s: %w", product, err)
		}
	}
	if len(roots) == 0 {
		return nil, nil
	}
	return snp.New(snp.Config{Roots: roots, Sources: []snp.Source{snp.OfflineStore(dir)}})
}

func simulatedIntel(dir string) (*tdx.Verifier, error) {
	text, err := podvm.ReadFileMax(filepath.Join(dir, "tdx-root.pem"), maxCertificates)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	roots, err := tdx.ParseRoots(text)
	if err != nil {
		return nil, fmt.Errorf("reading tdx-root.pem: %w", err)
	}
	return tdx.New(tdx.Config{Roots: roots, Source: tdx.File{Path: filepath.Join(dir, "tdx-collateral.json")}})
}
