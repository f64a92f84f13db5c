package model

import (
	"math"
	"path"
	"runtime/debug"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// Memory, in bytes.
const (
	maxControl = 64 << 10 // of a file of the control groups
	ownMemory  = 48 << 20 // of the program without its workers
	perWorker  = 3 << 20  // buffers on both sides of a connection, and its garbage
	noLimit    = 1 << 50  // control groups of version 1 have a number for none
)

// LimitMemory makes the garbage collector keep the program within what its control
// group allows, with an eighth left for the kernel's part, and returns what the
// group allows in bytes, 0 for no limit.
func LimitMemory(host podvm.Host) int64 {
	limit := memoryLimit(host)
	if limit > 0 {
		debug.SetMemoryLimit(limit - limit/8)
	}
	return limit
}

// maxWorkers is how many workers the memory is enough for.
func maxWorkers(host podvm.Host) int {
	limit := memoryLimit(host)
	if limit == 0 {
		return 64
	}
	return int(min(max((limit-limit/8-ownMemory)/perWorker, 2), 64))
}

// memoryLimit is the lowest limit of the control group and those above it that
// are to be seen here, 0 for none.
// Source: Linux Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
func memoryLimit(host podvm.Host) int64 {
	var v1, v2 = "/", "/"
	groups, _ := podvm.ReadFileMax(host.Path("/proc/self/cgroup"), maxControl) // without it: the top
	for line := range strings.Lines(string(groups)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(part) < 3:
		case part[0] == "0" && part[1] == "":
			v2 = part[2]
		case strings.Contains(","+part[1]+",", ",memory,"):
			v1 = part[2]
		}
	}
	lowest := int64(math.MaxInt64)
	for _, g := range []struct{ root, group, file string }{
		{"/sys/fs/cgroup", v2, "memory.max"},
		{"/sys/fs/cgroup/memory", v1, "memory.limit_in_bytes"},
	} {
		for at := path.Join("/", g.group); ; at = path.Dir(at) {
			text, err := podvm.ReadFileMax(host.Path(path.Join(g.root, at, g.file)), maxControl)
			if n, perr := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil && perr == nil && n > 0 {
				lowest = min(lowest, n)
			}
			if at == "/" {
				break
			}
		}
	}
	if lowest >= noLimit {
		return 0
	}
	return lowest
}
