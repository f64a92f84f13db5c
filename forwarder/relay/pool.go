package relay

import "sync"

// Buffers of whole frames that do not fit a reader's own: held from the first
// byte of such a frame until it is passed on, and shared by all connections, so
// that an idle one holds none. The garbage collector empties the pools.
var pools = [...]struct {
	size int
	pool sync.Pool // of *[]byte
}{{size: 256 << 10}, {size: 1<<20 + 4<<10}, {size: 4<<20 + 4<<10}}

// getBuffer returns a buffer of n bytes, which are at most a frame's.
func getBuffer(n int) *[]byte {
	for i := range pools {
		if n > pools[i].size {
			continue
		}
		if b, ok := pools[i].pool.Get().(*[]byte); ok {
			*b = (*b)[:n]
			return b
		}
		b := make([]byte, n, pools[i].size)
		return &b
	}
	b := make([]byte, n)
	return &b
}

// putBuffer takes back what getBuffer gave.
func putBuffer(b *[]byte) {
	for i := range pools {
		if cap(*b) == pools[i].size {
			pools[i].pool.Put(b)
			return // it is another's now
		}
	}
}
