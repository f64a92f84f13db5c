package azure

import (
	"crypto/sha256"
	"slices"
)

const (
	// imagePCR is where firmware measures what it starts.
	imagePCR = 4
	// kernelPCR is where a unified kernel image measures its parts.
	kernelPCR = 11
)

// measurement is a digest that boot extends a PCR with.
type measurement struct {
	pcr    int
	digest [sha256.Size]byte
}

// measureBoot is what firmware and the stub of a unified kernel image measure
// before the kernel runs. PCR 11 is as the stub makes it: for each section that
// is there its name, which ends in a zero, and its content. Of PCRs 0 to 7 there
// is less than on a real machine: firmware, its secure boot state, the kernel
// image, and what separates all that from what comes later.
// Source: systemd-stub(7), systemd-measure(1); TCG PC Client Platform Firmware
// Profile 1.06 §3.3.4.
func measureBoot(o Options) []measurement {
	var boot []measurement
	add := func(pcr int, data []byte) { boot = append(boot, measurement{pcr, sha256.Sum256(data)}) }
	add(0, []byte("firmware of a simulated Azure VM"))
	add(7, []byte("SecureBoot\x00\x01"))
	add(imagePCR, []byte("Calling EFI Application from Boot Option"))
	for pcr := range 8 {
		add(pcr, make([]byte, 4)) // EV_SEPARATOR
	}
	add(imagePCR, slices.Concat(o.Kernel, []byte("\x00"+o.CommandLine+"\x00"), o.Initrd))
	section := func(name string, content []byte) {
		add(kernelPCR, []byte(name+"\x00"))
		add(kernelPCR, content)
	}
	section(".linux", o.Kernel)
	section(".cmdline", []byte(o.CommandLine))
	if o.Initrd != nil {
		section(".initrd", o.Initrd)
	}
	return boot
}

// replay returns what a PCR holds after boot.
func replay(boot []measurement, pcr int) (value [sha256.Size]byte) {
	for _, m := range boot {
		if m.pcr == pcr {
			value = sha256.Sum256(append(value[:], m.digest[:]...))
		}
	}
	return value
}
