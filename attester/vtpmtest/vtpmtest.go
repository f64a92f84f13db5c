// Package vtpmtest runs a real software TPM, swtpm, for tests of what uses one,
// the attesters and process-user-data, and a front before it in which a test can
// do what the world around a TPM does: a paravisor that renews its report,
// another program that extends a PCR, a TPM that lies.
//
// Data path: none; only tests import it.
//
// Trust: none is needed.
package vtpmtest

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/podvm"
)

// Hook sees a command before the TPM does and returns the answer in its place,
// or nil. It runs for one command at a time and may use Send.
type Hook func(cmd []byte) []byte

// TPM is a running swtpm. It implements transport.TPM, past all hooks.
type TPM struct {
	program, dir, socket string
	stop                 func()
}

// Start starts an empty TPM, with the program swtpm, that ends with the test.
func Start(t testing.TB, program string) *TPM {
	t.Helper()
	dir, err := os.MkdirTemp("", "tpm") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	tpm := &TPM{program: program, dir: dir, socket: filepath.Join(dir, "s")}
	t.Cleanup(func() {
		tpm.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	tpm.stop = func() {}
	tpm.run(t)
	return tpm
}

// Reboot ends the TPM's power and switches it on again: PCRs are reset, NV
// indices and persistent keys stay.
func (p *TPM) Reboot(t testing.TB) {
	t.Helper()
	p.stop()
	p.run(t)
}

// Unplug ends the TPM's power and returns the directory of its state, another
// swtpm's to use until the test ends.
func (p *TPM) Unplug() (dir string) {
	p.stop()
	return p.dir
}

func (p *TPM) run(t testing.TB) {
	t.Helper()
	_ = os.Remove(p.socket)
	cmd := exec.CommandContext(context.Background(), p.program, "socket", "--tpm2", "--tpmstate", "dir="+p.dir,
		"--server", "type=unixio,path="+p.socket, "--flags", "not-need-init,startup-clear")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.stop = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	for range 1000 {
		if c, err := p.dial(); err == nil {
			c.Close()
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("swtpm does not listen")
}

func (p *TPM) dial() (net.Conn, error) {
	return new(net.Dialer).DialContext(context.Background(), "unix", p.socket)
}

// Send implements transport.TPM.
func (p *TPM) Send(cmd []byte) ([]byte, error) {
	c, err := p.dial()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if _, err := c.Write(cmd); err != nil {
		return nil, err
	}
	return readFrame(c)
}

// readFrame reads a command or an answer; both have their length at byte 2.
func readFrame(r io.Reader) ([]byte, error) {
	b := make([]byte, 10)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < 10 || size > 1<<16 {
		return nil, errors.New("a frame of no length")
	}
	b = append(b, make([]byte, size-10)...)
	_, err := io.ReadFull(r, b[10:])
	return b, err
}

// Key makes a key of AttestationKey and keeps it at a persistent handle.
func (p *TPM) Key(t testing.TB, handle uint32) {
	t.Helper()
	p.KeyOf(t, handle, AttestationKey())
}

// AttestationKey is the template of a restricted RSA-2048 signing key for
// RSASSA with SHA-256, which is what an attestation key is.
func AttestationKey() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true,
			Restricted: true, SignEncrypt: true,
		},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Scheme: tpm2.TPMTRSAScheme{
				Scheme:  tpm2.TPMAlgRSASSA,
				Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSASSA, &tpm2.TPMSSigSchemeRSASSA{HashAlg: tpm2.TPMAlgSHA256}),
			},
			KeyBits: 2048,
		}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
}

// KeyOf makes a key from a template and keeps it at a persistent handle.
func (p *TPM) KeyOf(t testing.TB, handle uint32, template tpm2.TPMTPublic) {
	t.Helper()
	made, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template)}.Execute(p)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tpm2.EvictControl{
		Auth:             tpm2.TPMRHOwner,
		ObjectHandle:     &tpm2.NamedHandle{Handle: made.ObjectHandle, Name: made.Name},
		PersistentHandle: tpm2.TPMHandle(handle),
	}.Execute(p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: made.ObjectHandle}).Execute(p); err != nil {
		t.Fatal(err)
	}
}

// Machine returns a machine whose /dev/tpmrm0 is this TPM, with the hooks in
// front of it, and whose environment is empty. The machine has nothing else.
func (p *TPM) Machine(t testing.TB, hooks ...Hook) podvm.Host {
	t.Helper()
	root, err := os.MkdirTemp("", "m") // short: it holds a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	if err := os.Mkdir(filepath.Join(root, "dev"), 0o700); err != nil {
		t.Fatal(err)
	}
	Listen(t, filepath.Join(root, "dev/tpmrm0"), append(hooks, func(cmd []byte) []byte {
		out, err := p.Send(cmd)
		if err != nil {
			t.Error(err)
		}
		return out
	})...)
	return podvm.Host{Root: root, LookupEnv: func(string) (string, bool) { return "", false }}
}

// Listen answers commands on a unix socket with the first hook that has an
// answer, until the test ends. A command nobody answers closes its connection.
func Listen(t testing.TB, path string, hooks ...Hook) {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var one sync.Mutex
	answer := func(c net.Conn) {
		defer c.Close()
		for {
			cmd, err := readFrame(c)
			if err != nil {
				return
			}
			one.Lock()
			var out []byte
			for _, h := range hooks {
				if out = h(cmd); out != nil {
					break
				}
			}
			one.Unlock()
			if _, err := c.Write(out); err != nil || out == nil {
				return
			}
		}
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { answer(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		all.Wait()
	})
}
