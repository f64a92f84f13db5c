// Package room asks how much room a file system has, before and after something
// does not fit.
//
// Data path: packages that write a model ask before they begin a file.
//
// Trust: the file system is the guest's own.
package room

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// ErrSpace says that a file system is full, or would be.
var ErrSpace = errors.New("not enough space")

// Check returns ErrSpace, with both numbers, unless the file system that root is
// on has need bytes free.
func Check(root *os.Root, need int64) error {
	dir, err := root.Open(".")
	if err != nil {
		return fmt.Errorf("asking for free space: %w", err)
	}
	defer dir.Close()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("asking for free space: %w", os.NewSyscallError("fstatfs", err))
	}
	if free := int64(st.Bavail) * st.Bsize; need > free {
		return fmt.Errorf("%w: %d MB needed, %d MB free", ErrSpace, need/1e6+1, free/1e6)
	}
	return nil
}

// Full makes an error of a full file system ErrSpace, and leaves others as they
// are.
func Full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrSpace, err)
	}
	return err
}
