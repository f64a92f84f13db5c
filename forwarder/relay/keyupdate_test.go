package relay

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
)

// sealer writes records of TLS 1.3 as a client that changes its keys, which Go's
// never does. Source: RFC 8446, sections 5.2, 7.1 to 7.3.
type sealer struct {
	net.Conn // under TLS
	secret   []byte
	seq      uint64
}

// Types of TLS records.
const (
	recordHandshake = 22
	recordData      = 23
)

func (s *sealer) expand(t testing.TB, label string, size int) []byte {
	info := append([]byte{0, byte(size), byte(len("tls13 " + label))}, "tls13 "+label...)
	out, err := hkdf.Expand(sha256.New, s.secret, string(append(info, 0)), size)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// record returns p in a record of the kind.
func (s *sealer) record(t testing.TB, kind byte, p []byte) []byte {
	block, err := aes.NewCipher(s.expand(t, "key", 16))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	nonce, number := s.expand(t, "iv", 12), make([]byte, 12)
	binary.BigEndian.PutUint64(number[4:], s.seq)
	s.seq++
	for i := range nonce {
		nonce[i] ^= number[i]
	}
	p = append(bytes.Clone(p), kind)
	head := []byte{recordData, 3, 3, 0, 0}
	binary.BigEndian.PutUint16(head[3:], uint16(len(p)+aead.Overhead()))
	return aead.Seal(head, nonce, p, head)
}

// update asks the server for new keys and goes on with its own.
func (s *sealer) update(t testing.TB) []byte {
	r := s.record(t, recordHandshake, []byte{24, 0, 0, 1, 1})
	s.secret, s.seq = s.expand(t, "traffic upd", sha256.Size), 0
	return r
}

// sealed is a relay for a client that changes its keys, in fake time. What the
// client reads, it reads from host.
func sealed(t *testing.T, dial func(context.Context) (net.Conn, error), f func(s *served, out *sealer, host rawEnd)) {
	synctest.Test(t, func(t *testing.T) {
		var keys bytes.Buffer
		var under net.Conn
		s := serve(t, Config{Dial: dial}, func(t testing.TB) (net.Conn, net.Conn) {
			client, server := net.Pipe()
			under = client
			c := tls.Client(client, &tls.Config{InsecureSkipVerify: true, KeyLogWriter: &keys})
			srv := tls.Server(NewSocket(server), &tls.Config{Certificates: []tls.Certificate{certificate()}, SessionTicketsDisabled: true})
			errs := make(chan error, 1)
			go func() { errs <- srv.Handshake() }()
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			if err := <-errs; err != nil {
				t.Fatal(err)
			}
			if suite := c.ConnectionState().CipherSuite; suite != tls.TLS_AES_128_GCM_SHA256 {
				t.Fatalf("the cipher suite is %s", tls.CipherSuiteName(suite))
			}
			return c, srv
		})
		_, log, _ := strings.Cut(keys.String(), "CLIENT_TRAFFIC_SECRET_0 ")
		line, _, _ := strings.Cut(log, "\n")
		_, secret, _ := strings.Cut(line, " ")
		key, err := hex.DecodeString(secret)
		if err != nil || len(key) != sha256.Size {
			t.Fatalf("%q is no key, %v", secret, err)
		}
		f(s, &sealer{Conn: under, secret: key}, rawEnd{t, s.Conn})
		under.Close()
		s.cancel()
		_ = s.wait()
	})
}

// A host may change its keys, however long nothing was sent to it.
func TestHostChangesItsKeys(t *testing.T) {
	sealed(t, absent, func(_ *served, out *sealer, host rawEnd) {
		for i, pause := range []time.Duration{0, hostTime * 2, time.Hour} {
			time.Sleep(pause)
			go func() { // the answers come meanwhile
				_, _ = out.Write(out.update(t))
				_, _ = out.Write(out.record(t, recordData, frame(2, typeRequest, 0, nil)))
			}()
			_ = host.SetReadDeadline(time.Now().Add(time.Minute))
			if got := waitResponse(host); got.code != codes.InvalidArgument {
				t.Fatalf("%d: got %v", i, got)
			}
		}
	})
}

// One that wants new keys of the server and does not read them delays the end by
// no more than TLS gives it to hear of that.
func TestHostThatDoesNotReadNewKeys(t *testing.T) {
	sealed(t, absent, func(s *served, out *sealer, _ rawEnd) {
		if _, err := out.Write(out.update(t)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		begin := time.Now()
		s.cancel()
		_ = s.wait()
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("the end took %s", took)
		}
	})
}
