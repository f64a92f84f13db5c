package relay

import (
	"encoding/binary"
	"fmt"
)

// A ttrpc frame is a header and a body: length of the body (4 bytes,
// big-endian), stream (4, big-endian), type (1), flags (1).
// Source: containerd/ttrpc PROTOCOL.md and channel.go at v1.2.10.
const (
	headerSize = 10
	maxBody    = 4 << 20 // messageLengthMax
)

// Types of frames. Both upstream servers ignore others: Go's (server.go at
// v1.2.10) and Rust's, which kata-agent has (containerd/ttrpc-rust
// src/asynchronous/server.rs at 01ce5962). The latter does not look at the order
// of stream numbers either.
const (
	typeRequest  = 1
	typeResponse = 2
	typeData     = 3
)

// Flags of frames: the sender of the frame sends no more, will send data
// frames, sends no body here.
const (
	flagRemoteClosed = 1
	flagRemoteOpen   = 2
	flagNoData       = 4
)

// header is that of a frame.
type header struct {
	length uint32 // of the body
	stream uint32
	kind   byte
	flags  byte
}

// size is that of the frame, header included.
func (h header) size() int { return headerSize + int(h.length) }

// getHeader reads the header at the start of p, which is long enough.
func getHeader(p []byte) header {
	_ = p[headerSize-1]
	return header{binary.BigEndian.Uint32(p), binary.BigEndian.Uint32(p[4:]), p[8], p[9]}
}

// setStream renumbers the frame at the start of p.
func setStream(p []byte, stream uint32) { binary.BigEndian.PutUint32(p[4:], stream) }

// setLength makes p, a header and what follows it, one frame.
func setLength(p []byte) { binary.BigEndian.PutUint32(p, uint32(len(p)-headerSize)) }

// appendHeader appends h to p.
func appendHeader(p []byte, h header) []byte {
	p = binary.BigEndian.AppendUint32(p, h.length)
	p = binary.BigEndian.AppendUint32(p, h.stream)
	return append(p, h.kind, h.flags)
}

// wholeFrames returns how many bytes at the start of p are frames in full, none
// of them too large, and how long the one after them will be: 0 if there is
// nothing of it, headerSize as long as its header is not there.
func wholeFrames(p []byte) (whole, next int) {
	for {
		rest := p[whole:]
		switch {
		case len(rest) == 0:
			return whole, 0
		case len(rest) < headerSize:
			return whole, headerSize
		}
		if next = getHeader(rest).size(); next > headerSize+maxBody || next > len(rest) {
			return whole, next
		}
		whole += next
	}
}

// tooLargeError says that a frame was discarded for its size.
type tooLargeError struct{ header }

// Error is the text of Go's ttrpc.
func (e *tooLargeError) Error() string {
	return fmt.Sprintf("message length %v exceed maximum message size of %v", e.length, maxBody)
}
