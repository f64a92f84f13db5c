// Package keywrap opens the keys of encrypted image layers: annotation packets,
// as an image carries them for each layer, and the key provider protocol in
// which callers outside this process hand them over.
//
// Data path: the image puller (in process) or ocicrypt (through the data hub's
// UnWrapKey) brings a packet. The key encryption key (KEK) it names is fetched
// from a resource.Provider and used here, or the key management service it
// names decrypts it; out come the private layer options, which the caller parses.
//
// Trust: packets come from an image nobody has verified yet, requests from any
// process of the guest. Sizes are capped, JSON and base64 are read strictly. A
// packet may choose which key of which service is used, with the guest's own
// credentials, but not where those are sent: see package kms.
// Under A256CTR nothing authenticates the result: the layer's own MAC and
// digest have to, and who can have many images pulled may find out the layer key
// by changing its bits. What is wrapped with A256GCM does not pass as A256CTR.
//
// It wraps no keys.
package keywrap
