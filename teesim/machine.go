// Package teesim runs simulated confidential machines: TDX and SNP behind a /sys
// with configfs-tsm, and Azure's with a virtual TPM. Their evidence has the form
// of the real thing and is really signed and measured, so everything above them
// runs for real on a laptop: attesters, relying party, any program that speaks
// configfs-tsm.
//
//	Open -> Simulator (maker's keys, in a directory) -> Boot -> Machine (a root directory)
//
// Place: `sealctl tee-sim` and `sealctl demo` run machines; sealpod's daemons run
// on one through the environment (Env).
//
// Trust: none is due. The maker's root is the simulator's own; evidence fails
// under those of Intel and AMD, and a relying party accepts it only when it is
// told to trust the simulator, whose keys lie in a directory. A machine protects
// nothing from anybody.
package teesim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/teesim/snp"
	"github.com/sealpod/sealpod/teesim/tdx"
)

// The kinds of machine.
const (
	TDX   = "tdx-sim"    // Intel TDX behind configfs-tsm
	SNP   = "snp-sim"    // AMD SEV-SNP behind configfs-tsm
	AzTDX = "az-tdx-sim" // an Azure confidential VM on Intel TDX
	AzSNP = "az-snp-sim" // an Azure confidential VM on AMD SEV-SNP
)

// Kinds returns all kinds of machine.
func Kinds() []string { return []string{TDX, SNP, AzTDX, AzSNP} }

// ErrKind says that there is no such kind of machine.
var ErrKind = errors.New("no such kind of simulated machine")

// Launch is what a machine is started with. The zero value is a good machine
// with no init data.
type Launch struct {
	// Kernel and CommandLine are measured; empty stands for a kernel and a
	// command line of the simulator's own.
	Kernel      []byte
	CommandLine string
	// InitData is the digest the host sets at launch, cut or padded with zeros to
	// the 48 bytes of TDX or the 32 of SNP. On Azure there is no such field: there
	// the guest measures it itself.
	InitData []byte
	// Debug lets the host look into the machine.
	Debug bool
	// StaleTCB has the platform run firmware that misses an update.
	StaleTCB bool
}

// Machine is a running machine.
type Machine struct {
	host    podvm.Host
	tee     string
	values  map[string]any
	closers []func() error
}

// Simulator makes machines of one kind.
type Simulator struct {
	kind  string
	dir   string
	intel *tdx.Platform // of the kinds on TDX
	amd   *snp.Chip     // of the kinds on SNP
}

// Open returns a simulator of that kind with the identity in dir, which is made
// if it is not there: dir/keys is private, dir/trust is what a relying party
// must be told to trust. Errors: ErrKind.
func Open(kind, dir string) (*Simulator, error) {
	if !slices.Contains(Kinds(), kind) {
		return nil, fmt.Errorf("%w: %q, have %v", ErrKind, podvm.Printable(kind, 32), Kinds())
	}
	s := &Simulator{kind: kind, dir: dir}
	var err error
	switch kind {
	case TDX, AzTDX:
		s.intel, err = tdx.Open(dir, tdx.Options{})
	default:
		s.amd, err = snp.Open(dir, snp.Options{})
	}
	if err != nil {
		return nil, fmt.Errorf("opening the simulated maker: %w", err)
	}
	return s, nil
}

// Trust is the directory a relying party must be given to trust the machines.
func (s *Simulator) Trust() string { return filepath.Join(s.dir, "trust") }

// Boot starts a machine whose root is the directory root, which is made if it
// is not there and may hold nothing but a machine's sys, dev and run. A TPM's
// state is in root-tpm. What a machine that was killed left in either is removed.
// Close the machine when done.
func (s *Simulator) Boot(ctx context.Context, root string, l Launch) (*Machine, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	m := &Machine{host: podvm.Host{Root: root}}
	if err := m.occupy(); err != nil {
		return nil, errors.Join(fmt.Errorf("making the machine's root: %w", err), m.Close())
	}
	if err := s.boot(ctx, m, l); err != nil {
		return nil, errors.Join(fmt.Errorf("booting a machine of kind %s: %w", s.kind, err), m.Close())
	}
	return m, nil
}

// ErrRunning says that a machine has its root there.
var ErrRunning = errors.New("a machine is running there")

// occupy makes the machine's root, keeps other machines out of it until Close,
// and clears it of what one that was killed left.
func (m *Machine) occupy() error {
	root := m.host.Root
	if err := os.Mkdir(root, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	// The lock ends with the process, however that ends.
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("%w: %s: %w", ErrRunning, root, err), dir.Close())
	}
	m.closers = append(m.closers, dir.Close)
	entries, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range entries {
		switch name {
		case "sys": // may be a stale mount, which mounting there again clears
		case "dev", "run":
			if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s holds %s, which is not of a machine", root, name)
		}
	}
	if err := os.RemoveAll(m.tpmDir()); err != nil {
		return err
	}
	m.closers = append(m.closers, m.clear)
	return nil
}

// tpmDir is where a TPM keeps its state, beside the root: the guest does not see
// it.
func (m *Machine) tpmDir() string { return m.host.Root + "-tpm" }

// clear removes the machine's root: what a guest keeps in memory does not
// outlive it. A /sys that is still mounted stays, with its directory.
func (m *Machine) clear() error {
	root := m.host.Root
	errs := []error{os.RemoveAll(filepath.Join(root, "dev")), os.RemoveAll(filepath.Join(root, "run")), os.RemoveAll(m.tpmDir())}
	for _, path := range []string{filepath.Join(root, "sys"), root} {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Host is where software of the guest finds the machine.
func (m *Machine) Host() podvm.Host { return m.host }

// Env are the variables that put sealpod's daemons on the machine.
func (m *Machine) Env() []string {
	env := []string{podvm.HostRootEnv + "=" + m.host.Root}
	if m.host.IMDS != "" {
		env = append(env, podvm.IMDSEnv+"="+m.host.IMDS)
	}
	return env
}

// TEE is the wire name of the machine's TEE.
func (m *Machine) TEE() string { return m.tee }

// ReferenceValues are what the built-in attestation policy expects of a machine
// like this one.
func (m *Machine) ReferenceValues() map[string]any { return maps.Clone(m.values) }

// Close stops the machine and removes its root.
func (m *Machine) Close() error {
	var errs []error
	for _, c := range slices.Backward(m.closers) {
		errs = append(errs, c())
	}
	m.closers = nil
	return errors.Join(errs...)
}
