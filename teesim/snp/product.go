package snp

import "fmt"

// The products, as certificates and AMD's key server call them.
const (
	Milan = "Milan"
	Genoa = "Genoa"
	Turin = "Turin"
)

// product is what tells the generations apart.
type product struct {
	name string
	// stepping is how endorsement keys name the product.
	stepping string
	// family, model and step are those of CPUID.
	family, model, step uint8
	// serial is that of AMD's ARK.
	serial int64
	// idSize is the length of a hardware id in bytes.
	idSize int
}

func productOf(name string) (product, error) {
	switch name {
	case Milan, "":
		return product{Milan, "Milan-B1", 0x19, 0x01, 1, 0x10000, 64}, nil
	case Genoa:
		return product{Genoa, "Genoa-B1", 0x19, 0x11, 1, 0x20000, 64}, nil
	case Turin:
		return product{Turin, "Turin-C1", 0x1A, 0x02, 1, 0x30000, 8}, nil
	}
	return product{}, fmt.Errorf("product %q: known are %s, %s and %s", name, Milan, Genoa, Turin)
}

// TCB are the versions of a chip's firmware.
type TCB struct {
	// FMC is of Turin only and 0 elsewhere.
	FMC                             uint8
	Bootloader, TEE, SNP, Microcode uint8
}

// current is the firmware that reference values ask for.
func (p product) current() TCB {
	t := TCB{Bootloader: 4, TEE: 1, SNP: 22, Microcode: 213}
	if p.name == Turin {
		t.FMC = 1
	}
	return t
}

// stale is firmware from before some fix.
func (p product) stale() TCB {
	t := p.current()
	t.SNP, t.Microcode = 14, 209
	return t
}

// bytes returns the 8 bytes of TCB_VERSION.
// Source: AMD 56860 §2.2, tables of TCB_VERSION.
func (t TCB) bytes(turin bool) []byte {
	if turin {
		return []byte{t.FMC, t.Bootloader, t.TEE, t.SNP, 0, 0, 0, t.Microcode}
	}
	return []byte{t.Bootloader, t.TEE, 0, 0, 0, 0, t.SNP, t.Microcode}
}
