package vtpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestInitDataIsBoundOncePerBoot(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	extended := 0
	host := tpm.Machine(t, func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCPCRExtend {
			extended++
		}
		return nil
	})
	digest := sha256.Sum256([]byte("init data"))
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	bound := func() {
		t.Helper()
		err := with(t, host, func(c *Conn) error {
			if err := c.BindInitData(digest[:]); err != nil {
				return err
			}
			if now, err := c.ReadPCR(8); err != nil || !bytes.Equal(now, want[:]) {
				t.Errorf("PCR 8 is %x, %v", now, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	bound()
	bound() // an agent that was started again
	if extended != 1 {
		t.Errorf("%d extensions", extended)
	}
	tpm.Reboot(t)
	bound()
	if extended != 2 {
		t.Errorf("%d extensions after a reboot", extended)
	}
	tpm.Reboot(t)
	tpm.Extend(t, 8, digest) // the image's own unit was first
	bound()
	if extended != 2 {
		t.Errorf("%d extensions after somebody else's", extended)
	}
}

// Two agents that start at the same moment, one for ttrpc and one for gRPC, bind
// once.
func TestInitDataIsBoundOnceByTwoAtOnce(t *testing.T) {
	digest := sha256.Sum256([]byte("init data"))
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	for name, host := range map[string]func(*vtpmtest.TPM) podvm.Host{
		"sockets": func(p *vtpmtest.TPM) podvm.Host { return p.Machine(t) },
		"device nodes": func(p *vtpmtest.TPM) podvm.Host {
			path := device(t, p)
			return podvm.Host{LookupEnv: func(string) (string, bool) { return path, true }}
		},
	} {
		t.Run(name, func(t *testing.T) {
			tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
			host := host(tpm)
			var agents sync.WaitGroup
			for range 4 {
				agents.Go(func() {
					if err := New(host).BindInitData(t.Context(), digest[:]); err != nil {
						t.Error(err)
					}
				})
			}
			agents.Wait()
			err := with(t, host, func(c *Conn) error {
				now, err := c.ReadPCR(8)
				if !bytes.Equal(now, want[:]) {
					t.Errorf("PCR 8 is %x", now)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
}

// A process that keeps the TPM keeps others waiting for as long as they like.
func TestATPMInUseByAnotherProcess(t *testing.T) {
	host := vtpmtest.Start(t, testenv.Tool(t, "swtpm")).Machine(t)
	err := with(t, host, func(*Conn) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		err := New(host).Do(ctx, func(*Conn) error { t.Error("both have it"); return nil })
		if !errors.Is(err, context.DeadlineExceeded) || podvm.Cause(err) == "" {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

func TestInitDataThatCannotBeBound(t *testing.T) {
	tpm := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	host := tpm.Machine(t)
	bind := func(n int) error {
		return with(t, host, func(c *Conn) error { return c.BindInitData(bytes.Repeat([]byte{1}, n)) })
	}
	for _, n := range []int{0, 31, 33, 48, 64} {
		if err := bind(n); !errors.Is(err, ErrInitData) || podvm.Cause(err) == "" {
			t.Errorf("a digest of %d bytes: %v", n, err)
		}
	}
	tpm.Extend(t, 8, sha256.Sum256([]byte("a boot loader")))
	if err := bind(32); !errors.Is(err, ErrInitData) || podvm.Cause(err) == "" {
		t.Errorf("PCR 8 in use: %v", err)
	}
	// Somebody extends the PCR between our reading and our extending.
	tpm.Reboot(t)
	host = tpm.Machine(t, func(cmd []byte) []byte {
		if vtpmtest.Command(cmd) == tpm2.TPMCCPCRExtend {
			tpm.Extend(t, 8, [32]byte{9})
		}
		return nil
	})
	if err := bind(32); !errors.Is(err, ErrInitData) {
		t.Errorf("two at once: %v", err)
	}
}
