package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/sealpod/sealpod/imagepull/registry/registrytest"
)

// blobServer holds one blob of 100 KiB, which is large here.
type blobServer struct {
	*registrytest.Server
	blob []byte
	desc Descriptor
}

func newBlobServer(t testing.TB) *blobServer {
	s := &blobServer{Server: registrytest.New(t), blob: randomBytes(100<<10 + 17)}
	s.desc = Descriptor{Digest: s.PutBlob(t, "a", s.blob), Size: int64(len(s.blob))}
	return s
}

// answer installs f for requests for the blob; f returns false to have it served.
func (s *blobServer) answer(f func(w http.ResponseWriter, r *http.Request, first int) bool) {
	s.Hook(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		first := 0
		_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &first)
		return f(w, r, first)
	})
}

func (s *blobServer) open(t testing.TB, c *Client) io.ReadCloser {
	t.Helper()
	repo, err := open(t, c, s.Host+"/a:1", Credentials{})
	if err != nil {
		t.Fatal(err)
	}
	body, err := repo.Blob(t.Context(), s.desc)
	if err != nil {
		t.Fatal(err)
	}
	return body
}

func (s *blobServer) read(t testing.TB, c *Client) {
	t.Helper()
	body := s.open(t, c)
	got, err := io.ReadAll(body)
	if err != nil || !bytes.Equal(got, s.blob) {
		t.Errorf("%d of %d bytes, same %v, %v", len(got), len(s.blob), bytes.Equal(got, s.blob), err)
	}
	if err := body.Close(); err != nil {
		t.Error(err)
	}
}

func largeClient(t testing.TB) *Client {
	c := client(t, nil)
	c.ranging = smallRanging
	return c
}

func TestLargeBlobComesOverSeveralConnections(t *testing.T) {
	s := newBlobServer(t)
	// Parts 2 to 5 are answered only when all of them have been asked for.
	var joined sync.WaitGroup
	joined.Add(4)
	s.answer(func(_ http.ResponseWriter, _ *http.Request, first int) bool {
		if n := first >> 12; n >= 2 && n < 6 {
			joined.Done()
			joined.Wait()
		}
		return false
	})
	c := largeClient(t)
	s.read(t, c)
	if n := s.Seen("/blobs/"); n != 1+23+1 {
		t.Errorf("%d requests", n) // two parts in the first, then one each, the last of 17 bytes
	}
	c.Close()
	s.WaitNoConns()
}

// TestReadAheadIsBounded: no more is asked for than fits the window.
func TestReadAheadIsBounded(t *testing.T) {
	s := newBlobServer(t)
	var read atomic.Int64
	s.answer(func(_ http.ResponseWriter, _ *http.Request, first int) bool {
		// What the reader got is counted after it got it.
		limit := read.Load() + smallRanging.part + int64(smallRanging.pages+headPages)*smallRanging.page + (maxConnsPerBlob-1)*smallRanging.part
		if first > 0 && int64(first) > limit {
			t.Errorf("%d asked for when %d were read", first, read.Load())
		}
		return false
	})
	body := s.open(t, largeClient(t))
	defer body.Close()
	var got bytes.Buffer
	for one := make([]byte, 1000); ; {
		n, err := body.Read(one)
		got.Write(one[:n])
		read.Add(int64(n))
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got.Bytes(), s.blob) {
		t.Error("other bytes")
	}
}

// TestPartBeingReadNeverWaitsForMemory: later parts fill all pages there are
// before the first byte of an earlier one comes.
func TestPartBeingReadNeverWaitsForMemory(t *testing.T) {
	s := newBlobServer(t)
	const late = 2 << 12
	full := make(chan struct{})
	c := largeClient(t)
	c.ranging.pages = 12 // as many as the three others fill with a part each
	var others atomic.Int64
	s.answer(func(_ http.ResponseWriter, _ *http.Request, first int) bool {
		switch {
		case first == late:
			<-full
		case first > late && others.Add(1) == 4:
			close(full) // one of them has finished its part and wants another
		}
		return false
	})
	s.read(t, c)
}

func TestReaderContract(t *testing.T) {
	s := newBlobServer(t)
	for name, c := range map[string]*Client{"one connection": client(t, nil), "several": largeClient(t)} {
		body := s.open(t, c)
		if err := iotest.TestReader(body, s.blob); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestConnectionsAreCapped: each blob has one, and all share a number of
// further ones.
func TestConnectionsAreCapped(t *testing.T) {
	s := newBlobServer(t)
	const blobs = 6
	var now, most atomic.Int64
	var all, begun sync.WaitGroup
	begun.Add(blobs)
	s.answer(func(_ http.ResponseWriter, _ *http.Request, first int) bool {
		for n := now.Add(1); ; {
			if old := most.Load(); n <= old || most.CompareAndSwap(old, n) {
				break
			}
		}
		if first == 0 {
			begun.Done()
			begun.Wait()
		}
		return false
	})
	c := largeClient(t)
	s.mux(&now, func() {
		for range blobs {
			all.Go(func() { s.read(t, c) })
		}
		all.Wait()
	})
	if n := most.Load(); n > blobs+maxHelpers || n < blobs {
		t.Errorf("%d connections at a time", n)
	}
	if len(c.helpers) != 0 {
		t.Errorf("%d connections still counted", len(c.helpers))
	}
}

// mux counts requests down when they end.
func (s *blobServer) mux(now *atomic.Int64, do func()) {
	h := s.Config.Handler
	s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r)
		if strings.Contains(r.URL.Path, "/blobs/") {
			now.Add(-1)
		}
	})
	do()
}

func TestSlowReaderHasOneConnection(t *testing.T) {
	const mb = 1 << 20
	for _, tt := range []struct {
		waited, passed time.Duration
		bytes          int64
		want           int
	}{{0, 1000, mb, 0}, {240, 1000, mb, 0}, {250, 1000, mb, 3}, {1000, 1000, mb, 3}, {1000, 1000, 199 * mb, 3}, {1000, 1000, 201 * mb, 0}} {
		if n := joiners(tt.waited*time.Millisecond, tt.passed*time.Millisecond, tt.bytes); n != tt.want {
			t.Errorf("waited %v of %v for %d MiB: %d join", tt.waited, tt.passed, tt.bytes/mb, n)
		}
	}
	s := newBlobServer(t)
	c := largeClient(t)
	c.ranging.join = func(_, _ time.Duration, _ int64) int { return 0 }
	s.read(t, c)
	if n := s.Seen("/blobs/"); n != 1+6 {
		t.Errorf("%d requests", n) // 8 KiB, then 16 KiB each
	}
}

// TestRangesThatAreNoneAtAll: whatever a registry makes of ranges, the blob
// arrives, with few requests.
func TestRangesThatAreNoneAtAll(t *testing.T) {
	whole := func(s *blobServer, w http.ResponseWriter) bool {
		_, _ = w.Write(s.blob)
		return true
	}
	partial := func(w http.ResponseWriter, contentRange string, b []byte) bool {
		w.Header().Set("Content-Range", contentRange)
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(b)
		return true
	}
	tests := map[string]func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool{
		"ignored": func(s *blobServer, w http.ResponseWriter, _ *http.Request, _ int) bool { return whole(s, w) },
		"ignored later": func(s *blobServer, w http.ResponseWriter, _ *http.Request, first int) bool {
			return first > 30<<10 && whole(s, w)
		},
		"ignored after one that broke before its first byte": func(s *blobServer, w http.ResponseWriter, _ *http.Request, _ int) bool {
			if s.Seen("/blobs/") > 1 {
				return whole(s, w)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-8191/%d", len(s.blob)))
			w.WriteHeader(http.StatusPartialContent)
			flush(w)
			panic(http.ErrAbortHandler)
		},
		"not satisfiable": func(_ *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			if first > 0 || r.Header.Get("Range") == "" {
				return false
			}
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		},
		"of another place": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			return r.Header.Get("Range") != "" && partial(w, fmt.Sprintf("bytes %d-%d/%d", first+1, first+4096, len(s.blob)), s.blob[:4096])
		},
		"a little further on": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			return r.Header.Get("Range") != "" && first+11 <= len(s.blob) && partial(w, fmt.Sprintf("bytes %d-%d/%d", first+1, first+10, len(s.blob)), s.blob[first+1:first+11])
		},
		"longer than asked for": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			return r.Header.Get("Range") != "" && partial(w, fmt.Sprintf("bytes %d-%d/%d", first, len(s.blob)-1, len(s.blob)), s.blob[first:])
		},
		"of a longer blob": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			return r.Header.Get("Range") != "" && partial(w, fmt.Sprintf("bytes %d-%d/%d", first, first, len(s.blob)+1), s.blob[first:first+1])
		},
		"no Content-Range": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			return r.Header.Get("Range") != "" && partial(w, "", s.blob[first:])
		},
		"length that is not the range's": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			w.Header().Set("Content-Length", "5")
			return partial(w, fmt.Sprintf("bytes %d-%d/%d", first, first+9, len(s.blob)), s.blob[first:first+5])
		},
		"multipart": func(s *blobServer, w http.ResponseWriter, r *http.Request, first int) bool {
			if r.Header.Get("Range") == "" {
				return false
			}
			r.Header.Set("Range", r.Header.Get("Range")+",0-5")
			return false
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			s := newBlobServer(t)
			s.answer(func(w http.ResponseWriter, r *http.Request, first int) bool { return answer(s, w, r, first) })
			s.read(t, largeClient(t))
			if n := s.Seen("/blobs/"); n > 25 {
				t.Errorf("%d requests", n)
			}
		})
	}
}

// TestFlakyRegistry: with every fault a network has, at random places, the blob
// arrives whole or not at all.
func TestFlakyRegistry(t *testing.T) {
	for seed := range uint64(40) {
		s := newBlobServer(t)
		var mu sync.Mutex
		dice := rand.New(rand.NewPCG(seed, 0))
		roll := func(n int) int { mu.Lock(); defer mu.Unlock(); return dice.IntN(n) }
		s.answer(func(w http.ResponseWriter, r *http.Request, first int) bool {
			switch roll(12) {
			case 0:
				panic(http.ErrAbortHandler)
			case 1:
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			case 2, 3: // reset somewhere in the answer
				answer := httptest.NewRecorder()
				registrytest.ServeBlob(answer, r, s.blob)
				for k, v := range answer.Header() {
					w.Header()[k] = v
				}
				w.WriteHeader(answer.Code)
				_, _ = w.Write(answer.Body.Bytes()[:roll(answer.Body.Len())])
				flush(w)
				panic(http.ErrAbortHandler)
			case 4: // fewer bytes than asked for
				if last := first + roll(3000); r.Header.Get("Range") != "" && last < len(s.blob) {
					r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", first, last))
				}
			}
			return false
		})
		body := s.open(t, largeClient(t))
		got, err := io.ReadAll(body)
		if err == nil && !bytes.Equal(got, s.blob) || !bytes.HasPrefix(s.blob, got) {
			t.Errorf("seed %d: %d of %d bytes, %v", seed, len(got), len(s.blob), err)
		}
		if err != nil {
			t.Logf("seed %d: %v", seed, err)
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestRedirectIsKeptUntilItExpires: the registry is not asked for each part
// where the blob is.
func TestRedirectIsKeptUntilItExpires(t *testing.T) {
	s := newBlobServer(t)
	var served, valid atomic.Int64
	cdn := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RawQuery != fmt.Sprint(valid.Load()) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		if served.Add(1) == 10 {
			valid.Add(1)
		}
		registrytest.ServeBlob(w, r, s.blob)
	}))
	t.Cleanup(cdn.Close)
	s.answer(func(w http.ResponseWriter, r *http.Request, _ int) bool {
		http.Redirect(w, r, fmt.Sprintf("%s/x?%d", cdn.URL, valid.Load()), http.StatusTemporaryRedirect)
		return true
	})
	s.read(t, largeClient(t))
	if n := s.Seen("/blobs/"); n < 2 || n > 6 || served.Load() < 20 {
		t.Errorf("%d requests to the registry, %d to the store", n, served.Load())
	}
}

// TestCloseEndsAReadThatWaits, in every state of a large blob.
func TestCloseEndsAReadThatWaits(t *testing.T) {
	for _, stopAt := range []int{0, 8 << 10, 40 << 10} {
		s := newBlobServer(t)
		waiting := make(chan struct{}, 99)
		s.answer(func(w http.ResponseWriter, r *http.Request, first int) bool {
			if first < stopAt {
				return false
			}
			if stopAt == 0 {
				begin(w, s.blob, 100)
			}
			waiting <- struct{}{}
			<-r.Context().Done()
			return true
		})
		c := largeClient(t)
		body := s.open(t, c)
		ended := make(chan error, 1)
		go func() { _, err := io.Copy(io.Discard, body); ended <- err }()
		<-waiting
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; err == nil {
			t.Error("a read of a closed blob succeeded")
		}
		if err := body.Close(); err != nil {
			t.Error(err)
		}
		c.Close()
		s.WaitNoConns()
	}
}

// TestResumeIsBoundedWithoutRanges: each try costs all that came before.
func TestResumeIsBoundedWithoutRanges(t *testing.T) {
	s := newBlobServer(t)
	s.blob = randomBytes(8 * progress)
	s.desc.Size = int64(len(s.blob))
	s.answer(func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		n := s.Seen("/blobs/")
		begin(w, s.blob, min(len(s.blob), n*progress+n))
		panic(http.ErrAbortHandler)
	})
	body := s.open(t, client(t, nil))
	defer body.Close()
	if n, err := io.Copy(io.Discard, body); !errors.Is(err, ErrTruncated) || s.Seen("/blobs/") != maxTries {
		t.Errorf("%d bytes, %v after %d requests", n, err, s.Seen("/blobs/"))
	}
}

// TestResumeGoesOnWhileThereIsProgress with ranges, which cost nothing twice.
func TestResumeGoesOnWhileThereIsProgress(t *testing.T) {
	s := newBlobServer(t)
	s.blob = randomBytes(8 * progress)
	s.desc.Size = int64(len(s.blob))
	s.answer(func(w http.ResponseWriter, r *http.Request, first int) bool {
		if r.Header.Get("Range") != "" {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, len(s.blob)-1, len(s.blob)))
			w.Header().Set("Content-Length", fmt.Sprint(len(s.blob)-first))
			w.WriteHeader(http.StatusPartialContent)
		} else {
			w.Header().Set("Content-Length", fmt.Sprint(len(s.blob)))
		}
		_, _ = w.Write(s.blob[first:min(len(s.blob), first+progress)])
		flush(w)
		panic(http.ErrAbortHandler)
	})
	s.read(t, client(t, nil))
}
