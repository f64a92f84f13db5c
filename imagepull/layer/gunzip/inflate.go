//go:build !sealpod_libgzip

package gunzip

const (
	window  = 32 << 10 // bytes a distance can reach back
	outSize = 256 << 10
	outMask = outSize - 1
	stride  = 4 * word // bytes of one step of a copy
	// fastOut is what one round of the fast loop may write: the longest match
	// and what the last step writes too much.
	fastOut = 258 + stride
	// outLimit is where the buffer counts as full.
	outLimit = outSize - fastOut
)

// buffer holds plain bytes: up to 32 KiB that a distance can reach, then new
// ones. A store at a position &outMask stays inside.
type buffer [outSize + word]byte

// inflater decodes DEFLATE. Source: RFC 1951.
type inflater struct {
	input
	state state
	final bool    // the block is the last one
	left  uint    // bytes to come of a stored block
	t     *tables // of the block with codes

	out   *buffer
	fresh uint // out[fresh:op] is new
	op    uint
	begin uint // out[begin:op] can be referred to

	dynamic tables
	meta    [1 << metaBits]uint32
	lengths [maxLit + maxDist]uint8
}

// state says what comes next.
type state uint8

const (
	blockHeader state = iota
	storedBytes
	codedBlock
)

// reset begins another stream, which cannot refer to the one before.
func (z *inflater) reset() {
	z.state, z.final = blockHeader, false
	z.begin = z.op
}

// full says that inflate needs a slide to go on.
func (z *inflater) full() bool { return z.op >= outLimit }

// slide makes room in the buffer, once what is in it has been read.
func (z *inflater) slide() {
	from := max(z.begin, z.op-min(z.op, window))
	z.op = uint(copy(z.out[:], z.out[from:z.op]))
	z.fresh, z.begin = z.op, 0
}

// inflate decodes until the buffer is full or the stream is at its end (done).
func (z *inflater) inflate() (done bool, err error) {
	for !z.full() {
		switch z.state {
		case blockHeader:
			if z.final {
				return true, nil
			}
			err = z.block()
		case storedBytes:
			err = z.copyStored()
		case codedBlock:
			err = z.decode()
		}
		if err != nil {
			return false, err
		}
	}
	return false, nil
}

// block reads the header of a block.
func (z *inflater) block() error {
	v, err := z.bits(3)
	if err != nil {
		return err
	}
	z.final = v&1 != 0
	switch v >> 1 {
	case 0:
		h, err := z.bytes(4)
		if err != nil {
			return err
		}
		if le.Uint16(h) != ^le.Uint16(h[2:]) {
			return z.corrupt("length of a stored block")
		}
		z.left, z.state = uint(le.Uint16(h)), storedBytes
		return nil
	case 1:
		z.t, z.state = fixed(), codedBlock
		return nil
	case 2:
		z.t, z.state = &z.dynamic, codedBlock
		return z.readCodes()
	default:
		return z.corrupt("type of a block")
	}
}

// copyStored copies until the stored block ends or the buffer is full.
func (z *inflater) copyStored() error {
	for z.left > 0 && !z.full() {
		z.want(1)
		if z.ip == z.end {
			return z.short()
		}
		n := uint(copy(z.out[z.op:outSize], z.in[z.ip:min(z.end, z.ip+z.left)]))
		z.ip += n
		z.op += n
		z.left -= n
	}
	if z.left == 0 {
		z.state = blockHeader
	}
	return nil
}

// decode decodes until the block with codes ends or the buffer is full.
func (z *inflater) decode() (err error) {
	for err == nil && z.state == codedBlock && !z.full() {
		z.want(2 * fastIn)
		if z.end-z.ip >= fastIn {
			err = z.fast()
		} else {
			err = z.slow() // the last bytes of the stream
		}
	}
	return err
}
