// Package model is the storage initializer: the init container that fetches a
// model for a model server, decrypts it and checks it. It stands in for KServe's,
// with the same arguments and environment.
//
// Data path: KServe starts it with pairs of a source and a folder; packages below
// model/source list and read the sources, model/key gets the key over the guest's
// data hub, model/sealed and its neighbours decrypt, model/fetch writes. The model
// server starts once it is done.
//
// Trust: stores and networks are hostile. Arguments and environment are the
// pod's, which the host's control plane wrote: they choose what is fetched, and
// what the key's owner did not seal they can replace. Whatever they say, each file of
// a sealed model under a pinned key is the one that its owner sealed; but they can
// leave some out by a pattern, and put other sources beside them.
package model
