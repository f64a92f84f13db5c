package snp

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/sealpod/sealpod/podvm"
)

// ErrNoKey says that a guest sent no endorsement key and no source has it.
var ErrNoKey = errors.New("no endorsement key for this chip and firmware")

// Chip names the VCEK of one chip at given firmware versions.
type Chip struct {
	Product string
	// ID is the hardware id: 64 bytes, 8 on Turin.
	ID  []byte
	TCB TCB
}

// Source finds VCEKs, and revocation lists if it implements Revocations. What it
// returns need not be trusted. It must be usable by any number of goroutines.
type Source interface {
	// VCEK returns the certificate as DER. ErrNoKey when there is none.
	VCEK(ctx context.Context, chip Chip) ([]byte, error)
}

// OfflineStore is a directory with endorsement keys, a Source and Revocations
// without a network. The files:
//
//	vcek/HWID/bl%02d_tee%02d_snp%02d_ucode%02d[_fmc%02d]_vcek.der
//	vcek/HWID/vcek.der       the fallback
//	crl/PRODUCT.der          as from the KDS at vcek/v1/PRODUCT/crl
//	crl/PRODUCT_vlek.der     as from the KDS at vlek/v1/PRODUCT/crl
//
// HWID is lower case hexadecimal; fmc is in the names of Turin only.
type OfflineStore string

var _ Revocations = OfflineStore("")

// VCEK implements Source.
func (s OfflineStore) VCEK(_ context.Context, chip Chip) ([]byte, error) {
	name := fmt.Sprintf("bl%02d_tee%02d_snp%02d_ucode%02d", chip.TCB.Bootloader, chip.TCB.TEE, chip.TCB.SNP, chip.TCB.Microcode)
	if chip.Product == Turin {
		name += fmt.Sprintf("_fmc%02d", chip.TCB.FMC)
	}
	dir := filepath.Join(string(s), "vcek", hex.EncodeToString(chip.ID))
	for _, file := range []string{name + "_vcek.der", "vcek.der"} {
		der, err := podvm.ReadFileMax(filepath.Join(dir, file), maxCertificate)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the VCEK from the offline store: %w", err)
		}
		return der, nil
	}
	return nil, fmt.Errorf("%w: %s has neither %s_vcek.der nor vcek.der", ErrNoKey, dir, name)
}

// CRL implements Revocations.
func (s OfflineStore) CRL(_ context.Context, of Issuer) ([]byte, error) {
	name := of.Product
	if of.VLEK {
		name += "_vlek"
	}
	path := filepath.Join(string(s), "crl", name+".der")
	der, err := podvm.ReadFileMax(path, maxCRL)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNoList, path)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a revocation list from the offline store: %w", err)
	}
	return der, nil
}
