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
// Time and memory are bounded. A connection that brings less than 16 KiB in 30
// s is given up, and what may pass is tried five times. The documents of an
// image, its signatures and its bundles have 5 minutes each, whatever becomes of
// them on the way. A blob has to come at 16 KiB/s, averaged over ten minutes of
// waiting for it; no other limit is set on large ones, the caller's context is.
// A blob takes 4 MiB of memory over one connection, 16 MiB over several.
package registry
