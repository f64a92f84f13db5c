// Package registry speaks to OCI registries for imagepull: it parses
// references, turns one into the candidates that mirrors and rewrites allow,
// picks credentials, and fetches manifests, configs, blobs and signatures over
// HTTP.
//
// Data path: imagepull asks Rules.Candidates, opens one Repository per
// candidate, resolves it to an Image and streams its layers.
//
// Trust: the registry and everything between is hostile. Documents are
// size-capped and match their digest before they are parsed; blobs are handed
// out unverified as a stream of at most the descriptor's size, and
// imagepull/layer judges them. Rules and credentials files come from the
// operator or the KBS and are parsed strictly.
//
// It stores nothing on disk. It follows no redirect from https to http, and
// none to an address of this machine or its link, where cloud metadata and our
// own services are. A registry itself may be on loopback, as local caches are;
// link-local and metadata addresses it has only when a reference, rule or
// mirror names the address and not a name that resolves to it. Credentials go
// only to the host they are for and to the token service that host names,
// tokens only to that host.
//
// Time and memory are bounded: a peer that stalls or trickles is given up, what
// may pass is tried five times, and a blob takes 4 MiB over one connection, 16
// MiB over several.
package registry
