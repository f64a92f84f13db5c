package demo

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// envModels makes the test binary serve a folder of models in place of tests.
const envModels = "SEALPOD_BENCH_STORE"

// beStore serves the folder dir until it is killed, and tells its address first. It
// is as little of an S3 store as will do, ranges by the standard library, and who is
// asked for the key.
func beStore(dir string) error {
	var sent atomic.Int64
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cdh/resource/", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, filepath.Join(dir, "key"))
	})
	mux.HandleFunc("GET /sent", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, sent.Load()) })
	mux.HandleFunc("GET /models/", func(w http.ResponseWriter, r *http.Request) {
		if q := r.URL.Query(); q.Has("list-type") {
			if err := listStore(w, dir, q.Get("prefix")); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
			return
		}
		w.Header().Set("ETag", storeTag)
		http.ServeFile(&counting{w, &sent}, r, filepath.Join(dir, filepath.FromSlash(strings.TrimPrefix(r.URL.Path, "/models/"))))
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	s := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	return s.Serve(l)
}

const storeTag = `"1"`

// listStore answers as S3's ListObjectsV2.
func listStore(w io.Writer, dir, prefix string) error {
	type content struct {
		Key, ETag string
		Size      int64
	}
	var list struct {
		XMLName     xml.Name `xml:"ListBucketResult"`
		IsTruncated bool
		Contents    []content
	}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || !strings.HasPrefix(rel, prefix) {
			return err
		}
		fi, err := e.Info()
		if err == nil {
			list.Contents = append(list.Contents, content{rel, storeTag, fi.Size()})
		}
		return err
	})
	if err != nil {
		return err
	}
	return xml.NewEncoder(w).Encode(list)
}

// counting counts what is sent, and leaves the sending to sendfile.
type counting struct {
	http.ResponseWriter
	sent *atomic.Int64
}

func (c *counting) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

func (c *counting) ReadFrom(r io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, r)
	c.sent.Add(n)
	return n, err
}

// startStore starts beStore in a process of its own and returns its URL.
func startStore(b *testing.B, dir string) string {
	b.Helper()
	self, err := os.Executable()
	must(b, err)
	cmd := exec.Command(self) //nolint:noctx // killed below
	cmd.Env = append(os.Environ(), envModels+"="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	b.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	must(b, err)
	return "http://" + strings.TrimSpace(addr) + "/models"
}

// served is how many bytes of objects the store has sent so far.
func (m *benchModel) served(b *testing.B) int64 {
	b.Helper()
	req, err := http.NewRequestWithContext(b.Context(), http.MethodGet, strings.TrimSuffix(m.url, "/models")+"/sent", nil)
	must(b, err)
	res, err := http.DefaultClient.Do(req)
	must(b, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	must(b, err)
	n, err := strconv.ParseInt(string(text), 10, 64)
	must(b, err)
	return n
}

// sumsOf are the digests of the files below dir.
func sumsOf(b *testing.B, dir string) map[string]string {
	b.Helper()
	out := map[string]string{}
	must(b, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		_, err = io.Copy(h, f)
		rel, _ := filepath.Rel(dir, p)
		out[rel] = hex.EncodeToString(h.Sum(nil))
		return err
	}))
	return out
}
