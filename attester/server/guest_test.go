package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/eventlog"
	"github.com/sealpod/sealpod/attester/internal/gate"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/podvm"
)

const tdxMeasurements = "/sys/devices/virtual/misc/tdx_guest/measurements/"

// tdxGuest is a TDX guest on a file tree, whose registers behave as a kernel's:
// what is written to one is hashed into its value.
type tdxGuest struct {
	*tdx.Attester
	host podvm.Host
}

// newTDXGuest returns a guest launched with mrconfigid, padded; without
// registers its kernel shows MRCONFIGID only.
func newTDXGuest(t *testing.T, mrconfigid []byte, registers bool) tdxGuest {
	t.Helper()
	host := podvm.Host{Root: t.TempDir(), LookupEnv: func(string) (string, bool) { return "", false }}
	files := map[string][]byte{"mrconfigid": append(bytes.Clone(mrconfigid), make([]byte, 48-len(mrconfigid))...)}
	if registers {
		for _, name := range []string{"rtmr0:sha384", "rtmr1:sha384", "rtmr2:sha384", "rtmr3:sha384"} {
			files[name] = make([]byte, 48)
		}
	}
	for name, content := range files {
		write(t, host.Path(tdxMeasurements+name), string(content))
	}
	return tdxGuest{tdx.New(host), host}
}

// set is the guest as an agent detects it at each start.
func (g tdxGuest) set() *attester.Set {
	return &attester.Set{Primary: tdxGuest{tdx.New(g.host), g.host}}
}

func (g tdxGuest) Registers() eventlog.Registers {
	inner := g.Attester.Registers()
	if inner == nil {
		return nil
	}
	return kernel{inner, g.host}
}

type kernel struct {
	eventlog.Registers
	host podvm.Host
}

func (k kernel) Extend(index uint32, digest []byte) error {
	value, err := k.Read(index)
	if err != nil {
		return err
	}
	if err := k.Registers.Extend(index, digest); err != nil {
		return err
	}
	name := "rtmr" + string(rune('0'+index-1)) + ":sha384"
	sum := sha512.Sum384(append(value, digest...))
	return os.WriteFile(k.host.Path(tdxMeasurements+name), sum[:], 0o600)
}

func (g tdxGuest) rtmr3(t *testing.T) []byte {
	t.Helper()
	b, err := os.ReadFile(g.host.Path(rtmr3))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// named is a TEE that is only a name, with or without registers.
type named struct {
	tee       string
	registers eventlog.Registers
}

func (n named) TEE() string                                             { return n.tee }
func (named) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }
func (n named) Registers() eventlog.Registers                           { return n.registers }

// pcrs are SHA-256 registers in memory.
type pcrs struct {
	gate.Gate
	values map[uint32][]byte
}

func newPCRs() pcrs { return pcrs{gate.New(), map[uint32][]byte{}} }

func (p pcrs) Read(index uint32) ([]byte, error) {
	if v, ok := p.values[index]; ok {
		return v, nil
	}
	return make([]byte, 32), nil
}

func (p pcrs) Extend(index uint32, digest []byte) error {
	old, _ := p.Read(index)
	sum := sha256.Sum256(append(bytes.Clone(old), digest...))
	p.values[index] = sum[:]
	return nil
}

// logged returns the texts of the events in a guest's log, and where it is.
func logged(t *testing.T, host podvm.Host) []string {
	t.Helper()
	b, err := os.ReadFile(host.Path(filepath.Clean(eventlog.Path)))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, part := range strings.Split(string(b), "LEAA")[1:] {
		n := int(part[0]) | int(part[1])<<8 | int(part[2])<<16
		out = append(out, part[4:4+n])
	}
	return out
}
