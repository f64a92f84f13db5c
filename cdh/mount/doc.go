// Package mount is the SecureMount service of the data hub: it turns the string
// options of a request into a checked volume, finds its device and its key, and
// has it opened, made and mounted by one of its subpackages: luks, zfs, or oss.
//
// Data path: cdh/server receives the request from kata-agent, from the forwarder
// or from cdh-oneshot; keys come from cdh/resource and cdh/secret through the
// interface Keys.
//
// Trust: callers are programs of the guest, but what they ask for is derived
// from what the host sends. So every option is checked before a program sees it:
// none can become an option of that program, name a file it was not meant to
// read, or make it load code. Devices belong to the host, see the subpackages.
//
// There is no unmount: callers unmount and close on their own, and a later
// request for the same device notices.
package mount
