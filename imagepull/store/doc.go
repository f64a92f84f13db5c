// Package store keeps unpacked layers and turns them into a container's root
// file system for imagepull.
//
// Data path: imagepull begins a Lease, has each layer staged and verified by a
// function of its own, and asks the Lease for the rootfs; the Lease is kept
// when all went well and released otherwise.
//
// Layout of the work directory:
//
//	lock                    held by the one process that uses the directory
//	boot_id                 the boot during which layers/ was filled
//	layers/<hex>[.plain]/   verified layers; hex = sha256(blob digest "\n" diffID)
//	implied/<hex>           what the mount of a layer needs to know of it
//	overlay/<id>/           upper, work and l/<n> symbolic links of one mount
//	tmp/                    staging; emptied at start-up
//	unfinished/             names of layers and overlays of pulls under way;
//	                        what has one at start-up is undone
//
// A layer's directory appears under layers/ by rename after every check has
// passed, so its existence says that it was verified; no other record is kept.
// Layers outlive the process but not the machine's boot: nothing is synced, so
// after a power cut they could be anything.
//
// Trust: digests come from a verified manifest and config, bundle paths from
// kata-agent. Names made here never contain outside bytes. What a staging
// function wrote counts for nothing unless it returned nil.
//
// It does not fetch, verify or unpack, and does not limit the space used.
package store
