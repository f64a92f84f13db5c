package debian

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Source says what to fetch from where.
type Source struct {
	Suite    string   // such as trixie
	Mirror   string   // URL of an archive, snapshots among them; empty is Debian's own
	Packages []string // all that they depend on comes with them, but what they recommend
}

// Package is a package that Fetch has unpacked.
type Package struct {
	File   string // its name in the archive, with version and architecture
	SHA256 string // of the file, in hex
}

// Fetch unpacks packages of Debian without running anything of them, and says
// which these were, sorted by name. mmdebstrap checks Debian's signatures. It
// may need root, where users have no user namespaces.
func Fetch(ctx context.Context, s Source) (_ Tree, _ []Package, err error) {
	dir, err := os.MkdirTemp("", "debian-")
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// In a user namespace root is somebody else here.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, nil, err
	}
	sums, err := os.OpenFile(filepath.Join(dir, "sums"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer sums.Close()
	var said bytes.Buffer
	args := []string{
		"--quiet", "--variant=extract", "--format=tar", "--include=" + strings.Join(s.Packages, ","),
		`--extract-hook=cd "$1"/var/cache/apt/archives && sha256sum *.deb >&3`, s.Suite, "-",
	}
	if s.Mirror != "" {
		args = append(args, s.Mirror)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Stderr, cmd.ExtraFiles = &said, []*os.File{sums}
	// It removes its temporary directory when it is asked to end.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	archive, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("starting mmdebstrap: %w", err)
	}
	t, readErr := Read(archive)
	if readErr != nil {
		_ = cmd.Cancel() // it must not go on waiting for a reader
	}
	if err := cmd.Wait(); err != nil {
		return nil, nil, errors.Join(readErr, fmt.Errorf("fetching packages with mmdebstrap: %w\n%s", err, tail(said.Bytes())))
	}
	if readErr != nil {
		return nil, nil, readErr
	}
	raw, err := os.ReadFile(sums.Name())
	if err != nil {
		return nil, nil, err
	}
	packages, err := ParsePackages(raw)
	return t, packages, err
}

// ErrPackages says that a list of packages cannot be read.
var ErrPackages = errors.New("not a list of packages")

// ParsePackages reads what sha256sum prints of package files, which is what
// FormatPackages writes.
func ParsePackages(raw []byte) ([]Package, error) {
	var out []Package
	lines := bufio.NewScanner(bytes.NewReader(raw))
	for lines.Scan() {
		sum, file, ok := strings.Cut(lines.Text(), "  ")
		if _, err := hex.DecodeString(sum); !ok || err != nil || len(sum) != 64 || !strings.HasSuffix(file, ".deb") || strings.ContainsAny(file, "/ ") {
			return nil, fmt.Errorf("%w: line %d", ErrPackages, len(out)+1)
		}
		out = append(out, Package{file, strings.ToLower(sum)})
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPackages, err)
	}
	slices.SortFunc(out, func(a, b Package) int { return strings.Compare(a.File, b.File) })
	return out, nil
}

// FormatPackages writes a list of packages, a line each.
func FormatPackages(list []Package) []byte {
	var out bytes.Buffer
	for _, p := range list {
		fmt.Fprintf(&out, "%s  %s\n", p.SHA256, p.File)
	}
	return out.Bytes()
}

func tail(b []byte) []byte { return b[max(0, len(b)-4096):] }
