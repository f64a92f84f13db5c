// Package seal is the owner's side of sealed secrets: it makes signing keys and
// writes the text form that package secret unseals in the guest.
//
// Data path: the owner seals a secret here and puts the text into a pod's
// environment, a Kubernetes secret or a volume option; the host carries it to
// the guest, where the data hub unseals it.
//
// Trust: it runs on the owner's machine with the owner's keys. A key management
// service that encrypts the data key is as trustworthy as the channel to it.
//
// It is never linked into a pod VM, stores no secrets in vaults and reads back
// nothing it wrote.
//
// Source: guest-components confidential-data-hub/hub/src/bin/secret_cli.rs and
// hub/src/secret at 8246e5e, whose order of members it keeps.
package seal
