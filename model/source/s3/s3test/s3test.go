// Package s3test runs a real S3 server for tests: versitygw, over a folder of
// files. It is for tests alone.
package s3test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// Install makes the program that Start runs.
const Install = "go install github.com/versity/versitygw/cmd/versitygw@v1.8.0"

// What a Server is set up with.
const (
	AccessKey = "test-access-key"
	SecretKey = "test-secret-key-0123456789"
	Region    = "eu-test-1"
)

// Server is a server that runs.
type Server struct {
	Addr string // host:port
	URL  string // without a slash at its end
	Dir  string // has a folder for each bucket
}

// Start runs a server until the test ends, with further options of versitygw
// before "posix".
func Start(t testing.TB, options ...string) *Server {
	t.Helper()
	bin := testenv.Tool(t, "versitygw")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Addr: l.Addr().String(), URL: "http://" + l.Addr().String(), Dir: t.TempDir()}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// Extended attributes need a file system that has them; tags of objects go
	// beside it.
	side := t.TempDir()
	args := append([]string{"--access", AccessKey, "--secret", SecretKey, "--region", Region, "--port", s.Addr, "--keep-alive", "--quiet"}, options...)
	cmd := exec.CommandContext(context.WithoutCancel(t.Context()), bin, // ended below, and waited for
		append(args, "posix", "--sidecar", side, s.Dir)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Env = &out, &out, []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(cmd.Process.Kill(), ignoreExit(cmd.Wait())); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("versitygw: %s", out.Bytes())
		}
	})
	for end := time.Now().Add(20 * time.Second); ; {
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr)
		if err == nil {
			if err := conn.Close(); err != nil {
				t.Fatal(err)
			}
			return s
		}
		if time.Now().After(end) {
			t.Fatalf("versitygw does not listen: %v\n%s", err, out.Bytes())
		}
		<-time.After(20 * time.Millisecond)
	}
}

func ignoreExit(err error) error {
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return nil
	}
	return err
}

// Bucket makes a bucket.
func (s *Server) Bucket(t testing.TB, name string) { t.Helper(); s.do(t, http.MethodPut, name, nil) }

// Put uploads an object.
func (s *Server) Put(t testing.TB, bucket, key string, body []byte) {
	t.Helper()
	s.do(t, http.MethodPut, bucket+"/"+key, body)
}

// PutFolder uploads the files of a folder below prefix, which is "" or ends with
// a slash.
func (s *Server) PutFolder(t testing.TB, bucket, prefix, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		b, err := os.ReadFile(p)
		if err == nil {
			s.Put(t, bucket, prefix+filepath.ToSlash(rel), b)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) do(t testing.TB, method, path string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+"/"+sigv4.EscapePath(path), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	hash := sigv4.Hash(body)
	req.Header.Set("X-Amz-Content-Sha256", hash)
	sigv4.Sign(req, hash, &sigv4.Credential{ID: AccessKey, Secret: podvm.Secret(SecretKey)}, Region, "s3", time.Now())
	tr := &http.Transport{DisableKeepAlives: true}
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := podvm.ReadMax(resp.Body, 1<<20)
		t.Fatalf("%s %s: %s\n%s", method, path, resp.Status, b)
	}
}
