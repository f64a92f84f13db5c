// Package podnet builds the guest's side of the pod network: a VXLAN tunnel to
// the worker node whose far end is the pod's interface there, with the pod's
// addresses, routes and neighbours, all in the network namespace the containers
// run in.
//
// Data path: cloud-api-adaptor writes what the pod's interface on the worker
// looks like into apf.json, the forwarder hands it to [Setup] before it
// listens, kata-agent puts containers into the namespace.
//
// Trust: the configuration comes from the host and is hostile: lists are
// capped, names and numbers are checked, and nothing it says reaches a device
// but the tunnel's own. The network itself belongs to the host; what crosses
// the tunnel is not encrypted, so pods must speak TLS.
//
// State is kept in the kernel, under names and a device group of our own, so
// that Setup after a crash finds what an earlier one left, keeps what fits and
// puts the rest right. The one thing the kernel forgets, how a network
// interface looked before it was lent to the pod, is in a file.
package podnet
