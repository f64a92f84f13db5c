package vtpm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/podvm"
)

// What callers tell apart. A code the TPM itself answered is a tpm2.TPMRC in
// the chain.
var (
	// ErrNoTPM says that this machine has no TPM.
	ErrNoTPM = errors.New("no TPM found")
	// ErrAnswer says that the TPM answered what cannot be right.
	ErrAnswer = errors.New("unexpected answer of the TPM")
)

// deviceEnv names the TPM to use.
// Source: guest-components attester/src/tpm at 8246e5e0.
const deviceEnv = "AA_TPM_DEVICE"

// devices are where a TPM is looked for. The kernel's resource manager comes
// first: it lets several programs use one TPM.
func devices() []string {
	return []string{"/dev/tpmrm0", "/dev/tpmrm1", "/dev/tpmrm2", "/dev/tpm0", "/dev/tpm1", "/dev/tpm2"}
}

// TPM is the TPM of a machine. It is safe for concurrent use: whoever has it in
// Do has it alone among TPM values, also those of other processes. Callers of
// one value are served in the order of coming, others in none. Make it with New.
type TPM struct {
	gate gate.Gate
	open func(context.Context) (link, error)
}

// New returns the TPM below host: the one AA_TPM_DEVICE names, or else the
// first there is. It is looked for on each use. A unix socket in place of a
// device is a simulated machine's.
func New(host podvm.Host) *TPM {
	return &TPM{gate: gate.New(), open: func(ctx context.Context) (link, error) {
		path, err := find(host)
		if err != nil {
			return nil, err
		}
		return openLink(ctx, path)
	}}
}

// find returns the path of the TPM to use.
func find(host podvm.Host) (string, error) {
	candidates := devices()
	if named, ok := host.Env(deviceEnv); ok {
		candidates = []string{named}
	}
	for _, c := range candidates {
		path := host.Path(c)
		switch _, err := os.Stat(path); {
		case err == nil:
			return path, nil
		case !errors.Is(err, fs.ErrNotExist):
			return "", fmt.Errorf("looking for a TPM: %w", err)
		}
	}
	if len(candidates) == 1 {
		return "", fmt.Errorf("%w: %s names %s", ErrNoTPM, deviceEnv, podvm.Printable(candidates[0], 256))
	}
	return "", ErrNoTPM
}

// Do opens the TPM, runs f with it and closes it, alone. ctx ends the wait for
// other callers, and f's commands as the package comment says.
//
// Errors: ErrNoTPM, those of opening and of f.
func (t *TPM) Do(ctx context.Context, f func(*Conn) error) (err error) {
	c, err := t.lock(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.unlock(c)) }()
	return f(c)
}

func (t *TPM) lock(ctx context.Context) (*Conn, error) {
	if err := t.gate.Lock(ctx); err != nil {
		return nil, err
	}
	l, err := t.open(ctx)
	if err != nil {
		t.gate.Unlock()
		return nil, fmt.Errorf("opening the TPM: %w", err)
	}
	return &Conn{ctx: ctx, link: l}, nil
}

func (t *TPM) unlock(c *Conn) error {
	defer t.gate.Unlock()
	return c.link.Close()
}

// Explain attaches cause to an error that has no cause yet, or a better one if
// the TPM may not be opened. A nil err stays nil.
func Explain(err error, cause string) error {
	switch {
	case err == nil || podvm.Cause(err) != "":
		return err
	case errors.Is(err, fs.ErrPermission):
		cause = "this program may not open the TPM device"
	}
	return podvm.Explain(err, cause)
}
