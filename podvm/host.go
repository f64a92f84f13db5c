package podvm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Host says where the machine below a daemon is found. The zero value is the
// real machine; tests and simulators point it at a directory tree and an
// environment of their own, so every platform path runs for real.
type Host struct {
	// Root is put before every absolute path of the machine: /sys, /proc,
	// /dev, /etc. Empty means "/".
	Root string
	// LookupEnv reads one environment variable; nil means os.LookupEnv.
	LookupEnv func(string) (string, bool)
	// IMDS is the base URL of the cloud's instance metadata service, without a
	// slash at its end. Empty means http://169.254.169.254.
	IMDS string
}

// The environment variables that put a daemon on a simulated machine. Evidence
// made there is signed by a simulator, under roots of its own, so a real relying
// party refuses it: nobody gains anything by setting them in a real machine, but
// a pod without keys. Daemons read them at the start only. A container cannot
// set them; who can (the image, a unit, the kernel command line) could as well
// start another program, which is what measurements of those are for.
const (
	HostRootEnv = "SEALPOD_HOST_ROOT" // a directory, Host.Root
	IMDSEnv     = "SEALPOD_IMDS_URL"  // Host.IMDS
)

// HostFromEnv returns the machine a daemon runs on: the real one unless the
// environment names another.
func HostFromEnv() Host { return Host{Root: os.Getenv(HostRootEnv), IMDS: os.Getenv(IMDSEnv)} }

// Simulated reports whether h is not the real machine.
func (h Host) Simulated() bool { return h.Root != "" || h.IMDS != "" }

// MetadataURL returns the URL of a path, which starts with a slash, at the
// instance metadata service.
func (h Host) MetadataURL(path string) string {
	if h.IMDS == "" {
		return "http://169.254.169.254" + path
	}
	return h.IMDS + path
}

// ECSMetadataURL is MetadataURL for the metadata service of Alibaba Cloud, which
// has an address of its own: 100.100.100.200.
func (h Host) ECSMetadataURL(path string) string {
	if h.IMDS == "" {
		return "http://100.100.100.200" + path
	}
	return h.IMDS + path
}

// Path returns where the absolute machine path p is on this host.
func (h Host) Path(p string) string {
	if h.Root == "" {
		return p
	}
	return filepath.Join(h.Root, p)
}

// Getenv returns the value of the environment variable name, "" if unset.
func (h Host) Getenv(name string) string {
	v, _ := h.Env(name)
	return v
}

// Env returns the value of the environment variable name and whether it is set.
func (h Host) Env(name string) (string, bool) {
	if h.LookupEnv != nil {
		return h.LookupEnv(name)
	}
	return os.LookupEnv(name)
}

// maxCmdline is above every kernel's COMMAND_LINE_SIZE (4 KiB on arm64 and
// x86 is 2 KiB), so a longer file is not a kernel command line.
const maxCmdline = 64 << 10

// KernelParams are the words of a kernel command line in order.
type KernelParams []string

// KernelParams reads /proc/cmdline. Words are split on white space; the kernel's
// own quoting is not undone, as upstream's readers do not either.
func (h Host) KernelParams() (KernelParams, error) {
	b, err := ReadFileMax(h.Path("/proc/cmdline"), maxCmdline)
	if err != nil {
		return nil, fmt.Errorf("reading the kernel command line: %w", err)
	}
	return KernelParams(strings.Fields(string(b))), nil
}

// First returns the value of the first word "key=value", and whether there is one.
func (p KernelParams) First(key string) (string, bool) {
	for _, w := range p {
		if k, v, ok := strings.Cut(w, "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// Last returns the value of the last word "key=value", and whether there is one.
func (p KernelParams) Last(key string) (string, bool) {
	for i := len(p) - 1; i >= 0; i-- {
		if k, v, ok := strings.Cut(p[i], "="); ok && k == key {
			return v, true
		}
	}
	return "", false
}

// ReadFileMax reads the whole file at path. A file longer than limit bytes is
// ErrTooLarge and nothing of it is returned.
func ReadFileMax(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() //nolint:errcheck // read-only
	b, err := ReadMax(f, limit)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return b, nil
}

// ReadMax reads r to its end. A stream longer than limit bytes is ErrTooLarge
// and nothing of it is returned. No copy stays behind in memory, as io.ReadAll
// leaves them: what was read may be a key, which the caller wipes.
func ReadMax(r io.Reader, limit int64) ([]byte, error) {
	b := make([]byte, 0, min(limit+1, 512))
	for {
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			clear(b)
			return nil, fmt.Errorf("%w: more than %d bytes", ErrTooLarge, limit)
		case err == io.EOF:
			return b, nil
		case err != nil:
			clear(b)
			return nil, err
		case len(b) == cap(b):
			more := append(make([]byte, 0, min(limit+1, 2*int64(cap(b)))), b...)
			clear(b)
			b = more
		}
	}
}
