// Package image builds the disk of a pod VM out of Debian packages and a tree of
// our own: EFI partition with a unified kernel image, read-only root file system
// with its dm-verity hash tree, and a partition for scratch storage.
//
//	firmware ─measures─> kernel image ─holds─> initrd, command line ─hold─> root hash ─verifies─> every block
//
// So the two digests of the kernel image stand for all software of the guest;
// Measure computes them without booting. The first program in the guest is
// podvm/image/init.
//
// Equal packages and an equal tree give an equal image, byte for byte: packages
// are unpacked and none of their scripts run, so nothing of the machine that
// builds gets in, and what scripts would do is done here.
//
// The builder runs on the owner's side. It trusts Debian's archive as far as its
// signatures go, and its own arguments.
package image
