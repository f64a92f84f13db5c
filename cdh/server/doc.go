// Package server is the confidential data hub: the ttrpc services kata-agent
// and api-server-rest call to get secrets, images and layer keys into a guest.
//
// Data path: a call comes in on the socket, package resource fetches, package
// keywrap unwraps, package secret unseals, package mount opens volumes, package
// imagepull pulls; a pulled image is then measured through the attestation agent.
//
// Trust: callers are other processes of the guest, their arguments come from
// the host and from containers and are checked by the package that uses them.
// The configuration comes from the host or the pod's owner.
//
// What leaves by an error is upstream's code and prefix, a short cause and a
// request id; everything else stays in the journal.
package server
