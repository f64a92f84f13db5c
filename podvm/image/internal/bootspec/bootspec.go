// Package bootspec is what the image builder and the first program of its
// initrd agree on. The initrd is measured with the kernel, so the guest takes
// what stands here for true.
package bootspec

const (
	// Path is where the initrd has its Spec, as JSON.
	Path = "/spec.json"
	// ModuleDir holds the kernel modules to load, in the order of their names.
	ModuleDir = "/modules"
	// BlockSize is that of the root file system and of its hash tree, in bytes.
	BlockSize = 4096
)

// Spec says how the machine finds its root file system and knows it again.
type Spec struct {
	// Cmdline is the kernel's command line. Without Secure Boot firmware may put
	// another in its place, which is measured elsewhere, so the guest compares.
	Cmdline string `json:"cmdline"`
	// Data and Hash are the unique ids of the partitions with the root file
	// system and its hash tree, as in 4f68bce3-e8cd-4db1-96e7-fbcaf984b709.
	Data string `json:"data"`
	Hash string `json:"hash"`
	// UUID is that of the hash tree.
	UUID string `json:"uuid"`
	// RootHash and Salt are hex, RootHash of SHA-256.
	RootHash string `json:"root_hash"`
	Salt     string `json:"salt"`
	// Blocks is the size of the root file system in blocks.
	Blocks uint64 `json:"blocks"`
}
