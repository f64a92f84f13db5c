// Package volume attaches cloud disks that the worker node names in the
// annotation cloud_volumes of a container: it finds the disk, mounts it below
// /run/cloud-volumes, and makes a file system on one that is empty. Encrypted ones
// are opened by the data hub.
//
// Data path: forwarder/intercept reads a CreateContainer request, has its volumes
// attached here, and points the container's mounts at the directories; at
// DestroySandbox it has them detached.
//
// Trust: the annotation, the names of devices, sysfs below them and all bytes of
// the disks come from the host. The host decides which disk is which, so a plain
// volume is the host's to read and to change; the guest merely protects itself
// and whatever is on a disk already: nothing is formatted that carries a signature,
// cannot be read, or is in use. What must be kept from the host is an encrypted
// volume, whose key the relying party releases. That it is asked for as one, the owner
// says in Rules, or in the policy of kata-agent: there a mount with a source in
// /run/cloud-volumes has to come with the annotation that names the volume's key. A
// name does not become another volume in between.
//
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/forwarder/interceptor and
// pkg/util/cloud.go at fbdde756.
package volume
