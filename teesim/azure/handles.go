package azure

import (
	"slices"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// loaders are the commands whose response starts with a handle of something
// they loaded. Source: TPM 2.0 part 2 §8.9, TPMA_CC rHandle.
var loaders = []tpm2.TPMCC{
	tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad, tpm2.TPMCCLoadExternal, tpm2.TPMCCCreateLoaded, tpm2.TPMCCContextLoad,
	tpm2.TPMCCHMACStart, tpm2.TPMCCHashSequenceStart, tpm2.TPMCCStartAuthSession,
}

const (
	handleType     = 0xFF << 24
	firstTransient = 0x80 << 24

	// maxObjects is how many objects clients may have loaded. libtpms 0.9 has
	// room for three, and a persistent key takes one while it is used.
	maxObjects = 2
)

// loaded tells which client loaded what. A handle that was flushed or used up
// may stay until its client ends or somebody else gets it.
type loaded map[tpm2.TPMHandle]*client

// refuses says whether a command would load an object for which there is no
// room left.
func (l loaded) refuses(t transport.TPM, cmd []byte) (bool, error) {
	code := tpm2.TPMCC(codeOf(cmd))
	if !slices.Contains(loaders, code) || code == tpm2.TPMCCStartAuthSession {
		return false, nil
	}
	const savedHandleOffset = headerSize + 8 // TPMS_CONTEXT, part 2 §14.5
	if saved, ok := handleAt(cmd, savedHandleOffset); ok && code == tpm2.TPMCCContextLoad && saved&handleType != firstTransient {
		return false, nil // a session
	}
	out, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: firstTransient, PropertyCount: maxObjects}.Execute(t)
	if err != nil {
		return false, err
	}
	objects, err := out.CapabilityData.Data.Handles()
	if err != nil {
		return false, err
	}
	return len(objects.Handle) >= maxObjects, nil
}

// note takes down what a client's command loaded.
func (l loaded) note(c *client, cmd, response []byte) {
	if codeOf(response) != uint32(tpm2.TPMRCSuccess) || !slices.Contains(loaders, tpm2.TPMCC(codeOf(cmd))) {
		return
	}
	if h, ok := handleAt(response, headerSize); ok {
		l[h] = c
	}
}

// flush unloads all that a client left behind.
func (l loaded) flush(t transport.TPM, c *client) {
	for h, owner := range l {
		if owner == c {
			_, _ = tpm2.FlushContext{FlushHandle: h}.Execute(t) // it may be gone
			delete(l, h)
		}
	}
}
