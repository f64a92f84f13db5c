// Package luks opens and makes LUKS2 volumes with the program cryptsetup, puts
// an ext4 file system on new ones and mounts them.
//
// A volume without a key lives as long as the boot: its key is random and
// forgotten, its header never leaves memory, and nothing on the device says
// what it is. A volume with a key is there to stay: its header is on the device,
// written only when everything else is in place, so that a header means a
// complete volume, whatever was killed when. If a LUKS2 header is there and a
// key, it is opened.
//
// A device is formatted only if blkid finds nothing at all on it, with a key or
// without. The one exception is a trace of an earlier volume without a key.
//
// Data path: cdh/mount parses requests and finds device and key, this package
// does the rest.
//
// Trust: the device belongs to the host, header included. LUKS2 headers are not
// authenticated, and cryptsetup does what they say: a header may name the null
// cipher, a foreign offset, or a derivation that takes all memory. So the header
// is read once into memory, checked here against the few forms this package
// knows, and cryptsetup is given that copy, which the host can no longer
// change. Afterwards the mapping of the kernel is compared with the request.
// Without dataIntegrity the host can still replace ciphertext, with it still
// return an older state of the volume. And a host that wipes the header gets a
// new, empty volume out of a caller that says empty; one that says encrypted
// gets an error.
package luks
