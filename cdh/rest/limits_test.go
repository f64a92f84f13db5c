package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
)

// pipes is a listener without a kernel, for tests in which time is not real.
type pipes struct {
	conns chan net.Conn
	end   chan struct{}
}

func (p pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.end:
		return nil, net.ErrClosed
	}
}

func (p pipes) Close() error   { close(p.end); return nil }
func (p pipes) Addr() net.Addr { return local{} }

type local struct{}

func (local) Network() string { return "tcp" }
func (local) String() string  { return "127.0.0.1:1" }

type pipe struct{ net.Conn }

func (pipe) RemoteAddr() net.Addr { return local{} }
func (pipe) LocalAddr() net.Addr  { return local{} }

// dial returns a client's end at once; the server may have its own only later.
func (p pipes) dial() net.Conn {
	client, server := net.Pipe()
	go func() {
		select {
		case p.conns <- pipe{server}:
		case <-p.end:
		}
	}()
	return client
}

// stopped runs do with a server of its own, in time that passes only while
// everybody waits.
func stopped(t *testing.T, do func(t *testing.T, p pipes)) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Features: "all", CDHAddr: "unix:///nonexistent/c", AAAddr: "unix:///nonexistent/a", Log: cdhtest.Quiet, wait: time.Nanosecond})
		if err != nil {
			t.Fatal(err)
		}
		p := pipes{make(chan net.Conn), make(chan struct{})}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- Serve(ctx, p, NewProbe(), h, cdhtest.Quiet) }()
		do(t, p)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// alive sends a request whose answer takes no peer.
func alive(t *testing.T, p pipes) {
	t.Helper()
	c := p.dial()
	defer c.Close()
	if _, err := io.WriteString(c, "GET /other HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 404 {
		t.Fatalf("%v, %v", resp, err)
	}
	if _, err := io.ReadAll(resp.Body); err != nil {
		t.Fatal(err)
	}
}

// ended waits for the server to close c and returns what it sent.
func ended(t *testing.T, c net.Conn) string {
	t.Helper()
	b, err := io.ReadAll(c)
	if err != nil && !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	return string(b)
}

// trickle sends head and then, every second, part, until the server closes the
// connection. It returns all that came back and how long that took.
func trickle(t *testing.T, p pipes, head, part string) (got string, took time.Duration) {
	t.Helper()
	c, start := p.dial(), time.Now()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.WriteString(c, head)
		for err == nil {
			<-time.After(time.Second)
			_, err = io.WriteString(c, part)
		}
	}()
	alive(t, p)
	got = ended(t, c)
	took = time.Since(start)
	c.Close()
	<-sent
	return got, took
}

func TestHeadersThatTrickle(t *testing.T) {
	stopped(t, func(t *testing.T, p pipes) {
		got, took := trickle(t, p, "GET /info HTTP/1.1\r\n", "X: y\r\n")
		if strings.Contains(got, "200") || took < readTimeout || took > readTimeout+2*time.Second {
			t.Errorf("%q after %v", got, took)
		}
	})
}

func TestBodiesThatTrickle(t *testing.T) {
	for name, tt := range map[string]struct{ head, part string }{
		"one that is read":      {"POST /aa/aael HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", " "},
		"in chunks":             {"POST /aa/aael HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n", "1\r\n \r\n"},
		"one that nobody reads": {"POST /other HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{", " "},
	} {
		t.Run(name, func(t *testing.T) {
			stopped(t, func(t *testing.T, p pipes) {
				got, took := trickle(t, p, tt.head, tt.part)
				if strings.Contains(got, "200 OK") || took > readTimeout+2*time.Second {
					t.Errorf("%q after %v", got, took)
				}
			})
		})
	}
}

func TestAnswersNobodyReads(t *testing.T) {
	stopped(t, func(t *testing.T, p pipes) {
		c := p.dial()
		if _, err := io.WriteString(c, "GET /other HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		alive(t, p)
		<-time.After(writeTimeout + time.Second)
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("the connection is open")
		}
	})
}

func TestConnectionsThatSayNothing(t *testing.T) {
	for name, said := range map[string]string{"at all": "", "after a request": "GET /other HTTP/1.1\r\nHost: x\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			stopped(t, func(t *testing.T, p pipes) {
				start := time.Now()
				for range maxConns {
					c := p.dial()
					defer c.Close()
					if said == "" {
						continue
					}
					if _, err := io.WriteString(c, said); err != nil {
						t.Fatal(err)
					}
					go func() { _, _ = io.Copy(io.Discard, c) }()
				}
				synctest.Wait()
				alive(t, p) // one too many: waits for the others to be sent away
				if took := time.Since(start); took == 0 || took > idleTimeout {
					t.Errorf("served after %v", took)
				}
			})
		})
	}
}

// Headers are counted in bytes, whatever they are made of.
func TestTooManyHeaders(t *testing.T) {
	w := newWorld(t, "all")
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "X-%d: y\r\n", i)
		}
		return b.String()
	}
	for name, tt := range map[string]struct {
		headers string
		want    string
	}{
		"a hundred":    {many(100), "200 OK"},
		"ten thousand": {many(10000), "431 Request Header Fields Too Large"},
		"a long one":   {"X: " + strings.Repeat("y", 64<<10) + "\r\n", "431 Request Header Fields Too Large"},
		"a long path":  {"", "431 Request Header Fields Too Large"},
	} {
		t.Run(name, func(t *testing.T) {
			path := "/info"
			if name == "a long path" {
				path = "/cdh/resource/" + strings.Repeat("a", 64<<10)
			}
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			go func() {
				_, _ = io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"+tt.headers+"\r\n")
			}()
			got, _ := io.ReadAll(c) // a reset may follow the answer
			if !strings.HasPrefix(string(got), "HTTP/1.1 "+tt.want) {
				t.Errorf("%.200q", got)
			}
		})
	}
}

// A body of any length costs no more than maxBody, whether a route reads it.
func TestHugeBodies(t *testing.T) {
	w := newWorld(t, "all")
	for _, target := range []string{"/aa/aael", "/cdh/resource/a/b/c", "/other"} {
		for _, framing := range []string{"Content-Length: 68719476736\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n1000000000\r\n"} {
			c, err := net.Dial("tcp", w.addr)
			if err != nil {
				t.Fatal(err)
			}
			if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
				t.Fatal(err)
			}
			sent := make(chan int64, 1)
			go func() {
				_, _ = io.WriteString(c, "POST "+target+" HTTP/1.1\r\nHost: x\r\n"+framing)
				n, _ := io.Copy(struct{ io.Writer }{c}, io.LimitReader(zeros{}, 1<<30))
				sent <- n
			}()
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			if err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				if !resp.Close {
					t.Errorf("%s: the connection is kept for the rest of the body", target)
				}
			}
			if n := <-sent; n >= 1<<30 {
				t.Errorf("%s: all was taken", target)
			}
			c.Close()
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// On a unix socket the permissions have decided.
func TestUnixSocket(t *testing.T) {
	w := newWorld(t, "all")
	path := filepath.Join(t.TempDir(), "rest.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(Config{Features: "all", CDHAddr: "unix://" + w.hub.path, AAAddr: "unix://" + w.aa.Path, Log: cdhtest.Quiet})
	if err != nil {
		t.Fatal(err)
	}
	u := &world{}
	u.serveOn(t, l, h)
	u.http.Transport.(*http.Transport).DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	resp, err := u.http.Get("http://rest/cdh/resource/a/b/c")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(b) != "content of kbs:///a/b/c" {
		t.Errorf("%d %q, %v", resp.StatusCode, b, err)
	}
	if os.Geteuid() == 0 {
		return // whom no permissions stop
	}
	if err := os.Chmod(path, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := net.Dial("unix", path); !errors.Is(err, os.ErrPermission) {
		t.Errorf("got in: %v", err)
	}
}
