package demo

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull/layer/gunzip"
	"github.com/sealpod/sealpod/imagepull/layer/untar"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// What BenchmarkPullImages compares pulls with.

// cost is what a stage takes when nothing else runs.
type cost struct{ wall, cpu time.Duration }

// cipherStage only encrypted layers have.
const cipherStage = "HMAC+CTR"

var stageNames = []string{"fetch", "SHA-256", cipherStage, "inflate", "untar", "diffID"}

// stages times the stages of a pull, one after the other, and adds them to what
// the layers before took. Reading the files they work on is subtracted: in a pull
// that is the stage before.
func (l *fileLayer) stages(b *testing.B, w *world, repo string, sealed bool, costs map[string][]cost) {
	b.Helper()
	timed := func(path string, work func(r io.Reader) error) cost {
		f, err := os.Open(path)
		must(b, err)
		defer f.Close()
		cpu, began := cpuTime(b), time.Now()
		must(b, work(f))
		return cost{time.Since(began), cpuTime(b) - cpu}
	}
	into := func(w io.Writer) func(io.Reader) error {
		return func(r io.Reader) error { return pump(w, r) }
	}
	blobRead, tarRead := timed(l.blob, into(io.Discard)), timed(l.tar, into(io.Discard))
	add := func(stage string, c, read cost) {
		costs[stage] = append(costs[stage], cost{c.wall - read.wall, c.cpu - read.cpu})
	}
	add("fetch", timed(l.blob, func(io.Reader) error {
		resp, err := http.Get("http://" + w.regHTTP.addr + "/v2/" + repo + "/blobs/" + l.digest.String())
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("fetching the blob: %s", resp.Status)
		}
		return pump(io.Discard, resp.Body)
	}), cost{})
	add("SHA-256", timed(l.blob, into(sha256.New())), blobRead)
	if sealed {
		block, err := aes.NewCipher(make([]byte, 32))
		must(b, err)
		mac := hmac.New(sha256.New, make([]byte, 32))
		plain := cipher.StreamWriter{S: cipher.NewCTR(block, make([]byte, 16)), W: io.Discard}
		add(cipherStage, timed(l.blob, into(io.MultiWriter(mac, plain))), blobRead)
	}
	add("inflate", timed(l.blob, func(r io.Reader) error {
		if l.mediaType != types.OCILayerZStd {
			return pump(io.Discard, gunzip.NewReader(r, gunzip.Options{}))
		}
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
		if err != nil {
			return err
		}
		defer d.Close()
		return pump(io.Discard, d)
	}), blobRead)
	dir, err := os.MkdirTemp(w.dir, "untar-")
	must(b, err)
	defer os.RemoveAll(dir)
	add("untar", timed(l.tar, func(r io.Reader) error {
		mode := untar.Plain
		if os.Geteuid() == 0 {
			mode = untar.Overlay
		}
		_, err := untar.Extract(b.Context(), bufio.NewReaderSize(r, 256<<10), dir, untar.Options{Mode: mode})
		return err
	}), tarRead)
	add("diffID", timed(l.tar, into(sha256.New())), tarRead)
}

// pump copies in steps of the size the stages of a pull have.
func pump(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(struct{ io.Writer }{w}, struct{ io.Reader }{r}, make([]byte, 256<<10))
	return err
}

// gnuTar times tar with those flags, as -xf, of the file at path.
func gnuTar(b *testing.B, w *world, flags, path string) time.Duration {
	b.Helper()
	dir, err := os.MkdirTemp(w.dir, "tar-x-")
	must(b, err)
	defer os.RemoveAll(dir)
	return command(b, "tar", flags, path, "-C", dir)
}

// skopeoUmoci times what unpacks the image at ref with the usual tools, or says
// why it cannot.
func skopeoUmoci(b *testing.B, w *world, ref string) (took time.Duration, why string) {
	b.Helper()
	for _, tool := range []string{"skopeo", "umoci"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv(testenv.RequireEnv) == "1" {
				b.Error(err)
			}
			return 0, tool + " is not installed"
		}
	}
	dir, err := os.MkdirTemp(w.dir, "tools-")
	must(b, err)
	defer os.RemoveAll(dir)
	took = command(b, "skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://"+ref, "oci:"+dir+"/image:1")
	args := []string{"unpack", "--image", dir + "/image:1", dir + "/bundle"}
	if os.Geteuid() != 0 {
		args = slices.Insert(args, 1, "--rootless")
	}
	return took + command(b, "umoci", args...), ""
}

// command runs a program that must succeed and returns how long it took.
func command(b *testing.B, program string, args ...string) time.Duration {
	b.Helper()
	began := time.Now()
	if out, err := exec.CommandContext(b.Context(), program, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", program, err, out)
	}
	return time.Since(began)
}

// cpuTime is what this process, registry and all, has used of all cores.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
