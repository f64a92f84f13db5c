// Package gunzip turns a gzip stream into the bytes that were compressed, more
// than twice as fast as the libraries for Go do: on machines of one or two
// cores inflating is what a pull waits for.
//
// Data path: imagepull/layer reads a blob, decrypts it if need be, and passes
// it through here on the way to hashing and unpacking.
//
// Trust: every byte is hostile. Memory is fixed (Options says how much), time
// is bounded by the bytes read and written, no input makes it panic, and what
// compress/gzip accepts and refuses is the measure of what is accepted here.
// The code has no unsafe and no assembly: all positions are masked to the size
// of an array that is a power of two long, which the compiler knows to need no
// bounds check, and the arrays have room behind for wide loads and stores.
//
// How it is fast: bits come eight bytes at a time into a 64-bit register; one
// look-up yields one or two literals, or a length with its extra bits, and is
// made before the match in hand is copied; matches are copied by 32 bytes in a
// flat buffer of 256 KiB, so that nothing wraps around; and one short loop does
// all this without looking for the end of input or buffer inside a round.
//
// It does not read zlib or raw DEFLATE streams, preset dictionaries or the
// metadata of members, and it does not seek. Build with the tag sealpod_libgzip
// to put the library's decoder behind the same names.
package gunzip
