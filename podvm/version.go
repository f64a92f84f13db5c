package podvm

import (
	"runtime/debug"
)

// version is set by the linker (-X …/podvm.version=TAG-COMMIT).
var version string

// Version returns the build's "TAG-COMMIT", or what the Go tool chain recorded
// when the linker was told nothing.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
