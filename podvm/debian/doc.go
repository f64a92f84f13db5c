// Package debian makes file trees of Debian's packages on a developer's machine:
// it unpacks packages, picks files and kernel modules with all they need, and
// writes initramfs archives. Image builder (podvm/image) and virtual machines
// of tests (podvm/vmtest) start here; nothing of it runs in a pod VM.
//
// No script of a package is run. What comes from Debian is trusted once apt has
// checked its signature.
package debian
