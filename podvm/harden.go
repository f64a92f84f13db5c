package podvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// NoCoreDumps keeps the memory of this process, which holds keys, out of core
// files and away from debuggers of the same user.
func NoCoreDumps() error {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("setting the core file limit: %w", err)
	}
	// The limit alone does not stop a kernel that pipes dumps to a program.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("making the process undumpable: %w", err)
	}
	return nil
}
