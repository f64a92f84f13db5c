package layer

import (
	"fmt"
	"runtime/debug"

	"github.com/sealpod/sealpod/podvm"
)

// panicError is a panic in a parser or cipher that reads bytes of an image.
// The data hub serves other containers too and must outlive it.
type panicError struct {
	value string // printable
	stack []byte
}

func (e *panicError) Error() string { return "the program failed: " + e.value }

// Contain runs f and makes a panic in it an error. It is for goroutines that
// handle bytes of an image.
func Contain(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{podvm.Printable(fmt.Sprint(p), 200), debug.Stack()}
		}
	}()
	return f()
}
