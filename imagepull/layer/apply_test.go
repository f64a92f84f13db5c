package layer

import (
	"bytes"
	"context"
	_ "crypto/sha512"
	"errors"
	"io"
	"log/slog"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"

	"github.com/sealpod/sealpod/podvm"

	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestApply(t *testing.T) {
	raw := tarOf(t, "a", "alpha", "big", noise(1<<20))
	want := map[string]string{"a": "alpha", "big": noise(20)}
	half := len(raw) / 2
	long := func(mediaType string, blob []byte, algo digest.Algorithm) sample {
		s := plainLayer(mediaType, blob, raw)
		s.spec.Digest, s.spec.DiffID = algo.FromBytes(blob).String(), algo.FromBytes(raw).String()
		return s
	}
	docker := "application/vnd.docker.image.rootfs."
	foreign := "application/vnd.oci.image.layer.nondistributable.v1.tar"
	tests := map[string]sample{
		"tar":                         plainLayer(oci, raw, raw),
		"gzip":                        plainLayer(oci+"+gzip", gz(t, raw), raw),
		"gzip of several members":     plainLayer(oci+"+gzip", concat(gz(t, raw[:half]), gz(t, nil), gz(t, raw[half:])), raw),
		"zstd":                        plainLayer(oci+"+zstd", zst(t, raw), raw),
		"zstd of several frames":      plainLayer(oci+"+zstd", concat(zst(t, raw[:half]), zst(t, raw[half:])), raw),
		"zstd with a skippable frame": plainLayer(oci+"+zstd", concat([]byte("\x50\x2a\x4d\x18\x04\x00\x00\x00skip"), zst(t, raw)), raw),
		"nondistributable tar":        plainLayer(foreign, raw, raw),
		"nondistributable gzip":       plainLayer(foreign+"+gzip", gz(t, raw), raw),
		"nondistributable zstd":       plainLayer(foreign+"+zstd", zst(t, raw), raw),
		"docker tar":                  plainLayer(docker+"diff.tar", raw, raw),
		"docker gzip":                 plainLayer(docker+"diff.tar.gzip", gz(t, raw), raw),
		"docker zstd":                 plainLayer(docker+"diff.tar.zstd", zst(t, raw), raw),
		"docker foreign gzip":         plainLayer(docker+"foreign.diff.tar.gzip", gz(t, raw), raw),
		"sha384":                      long(oci, raw, digest.SHA384),
		"sha512":                      long(oci+"+gzip", gz(t, raw), digest.SHA512),
	}
	for n, s := range tests {
		check := func(t *testing.T, s sample) {
			got, st, err := apply(t, s)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if d := cmp.Diff(Stats{BlobBytes: int64(len(s.blob)), Bytes: int64(len(raw)), Entries: 2}, st); d != "" {
				t.Error(d)
			}
		}
		t.Run(n, func(t *testing.T) { check(t, s) })
		if strings.HasPrefix(s.spec.MediaType, "application/vnd.oci") {
			t.Run(n+", encrypted", func(t *testing.T) { s, _ := seal(t, s); check(t, s) })
		}
	}
}

func TestApplyForOverlay(t *testing.T) {
	testenv.Root(t)
	raw := tarOf(t, "d/.wh.x", "", "d/f", "1")
	s := plainLayer(oci, raw, raw)
	dir := t.TempDir()
	if _, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, nil, dir, Options{}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]string{"d/f": "1"}, files(t, dir)); d != "" {
		t.Error(d)
	}
}

func TestApplyOfSmallReads(t *testing.T) {
	raw := tarOf(t, "a", noise(40000))
	s, _ := seal(t, plainLayer(oci+"+gzip", gz(t, raw), raw))
	for n, r := range map[string]io.Reader{
		"one byte": iotest.OneByteReader(bytes.NewReader(s.blob)), "half": iotest.HalfReader(bytes.NewReader(s.blob)),
		"data with EOF": iotest.DataErrReader(bytes.NewReader(s.blob)),
	} {
		if _, err := Apply(t.Context(), r, s.spec, s.key, t.TempDir(), Options{Mode: Plain}); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
}

func TestApplyRefusesPlainLayers(t *testing.T) {
	raw := tarOf(t, "a", noise(1<<20), "b", "x")
	tarS := plainLayer(oci, raw, raw)
	gzS := plainLayer(oci+"+gzip", gz(t, raw), raw)
	zsS := plainLayer(oci+"+zstd", zst(t, raw), raw)
	cut := func(s sample, n int) sample {
		return s.with(func(s *sample) { s.blob = s.blob[:n]; s.redigest() })
	}
	add := func(s sample, tail string) sample {
		return s.with(func(s *sample) { s.blob = append(s.blob, tail...); s.redigest() })
	}
	var wide bytes.Buffer
	w, err := zstd.NewWriter(&wide, zstd.WithWindowSize(256<<20))
	must(t, err)
	_, err = w.Write(raw[:1<<19])
	must(t, errors.Join(err, w.Flush())) // so that the frame is not a single segment
	_, err = w.Write(raw[1<<19:])
	must(t, errors.Join(err, w.Close()))
	tests := map[string]struct {
		s   sample
		err error
	}{
		"size one less":                   {gzS.with(func(s *sample) { s.spec.Size-- }), ErrTooLarge},
		"size one more":                   {gzS.with(func(s *sample) { s.spec.Size++ }), ErrTruncated},
		"negative size":                   {gzS.with(func(s *sample) { s.spec.Size = -1 }), ErrTruncated},
		"blob cut on the way":             {gzS.with(func(s *sample) { s.blob = s.blob[:500000] }), ErrTruncated},
		"blob empty":                      {gzS.with(func(s *sample) { s.blob = nil }), ErrTruncated},
		"first bit flipped":               {gzS.with(func(s *sample) { s.blob[0] ^= 1 }), ErrDigest},
		"last bit flipped":                {gzS.with(func(s *sample) { s.blob[len(s.blob)-1] ^= 1 }), ErrDigest},
		"flip that the inflater sees too": {gzS.with(func(s *sample) { s.blob[300000] ^= 0xff }), ErrDigest},
		"other digest":                    {tarS.with(func(s *sample) { s.spec.Digest = digest.FromString("x").String() }), ErrDigest},
		"malformed digest":                {tarS.with(func(s *sample) { s.spec.Digest = "sha256:AA" }), ErrDigest},
		"unknown digest algorithm":        {tarS.with(func(s *sample) { s.spec.Digest = "md5:d41d8cd98f00b204e9800998ecf8427e" }), ErrDigest},
		"other diffID":                    {tarS.with(func(s *sample) { s.spec.DiffID = digest.FromString("x").String() }), ErrDiffID},
		"no diffID":                       {tarS.with(func(s *sample) { s.spec.DiffID = "" }), ErrDiffID},
		"diffID of the compressed layer":  {gzS.with(func(s *sample) { s.spec.DiffID = s.spec.Digest }), ErrDiffID},
		"zeros after the tar":             {add(tarS, strings.Repeat("\x00", 512)), ErrDiffID},
		"garbage after the tar":           {add(tarS, strings.Repeat("garbage!", 64)), ErrArchive},
		"garbage after the gzip":          {add(gzS, "garbage"), ErrArchive},
		"garbage after the zstd":          {add(zsS, "garbage"), ErrArchive},
		"tar truncated":                   {cut(tarS, 700), ErrArchive},
		"gzip truncated in its header":    {cut(gzS, 5), ErrArchive},
		"gzip truncated in its data":      {cut(gzS, 400000), ErrArchive},
		"gzip truncated in its trailer":   {cut(gzS, len(gzS.blob)-4), ErrArchive},
		"gzip of nothing":                 {cut(gzS, 0), ErrArchive},
		"zstd truncated":                  {cut(zsS, 400000), ErrArchive},
		"gzip called zstd":                {gzS.with(func(s *sample) { s.spec.MediaType = oci + "+zstd" }), ErrArchive},
		"gzip called tar":                 {gzS.with(func(s *sample) { s.spec.MediaType = oci }), ErrArchive},
		"zstd window beyond 128 MiB":      {plainLayer(oci+"+zstd", wide.Bytes(), raw), ErrArchive},
		"unknown media type":              {tarS.with(func(s *sample) { s.spec.MediaType = oci + "+xz" }), ErrMediaType},
		"encrypted but no key":            {tarS.with(func(s *sample) { s.spec.MediaType += "+encrypted" }), ErrDecrypt},
		"key but not encrypted":           {tarS.with(func(s *sample) { s.key = &Key{} }), ErrDecrypt},
	}
	for n, tt := range tests {
		t.Run(n, func(t *testing.T) {
			_, st, err := apply(t, tt.s)
			if !errors.Is(err, tt.err) {
				t.Errorf("error %v, want %v", err, tt.err)
			}
			if st != (Stats{}) {
				t.Errorf("stats beside an error: %+v", st)
			}
			if podvm.Cause(err) == "" {
				t.Error("no public cause")
			}
		})
	}
}

func TestZipBombs(t *testing.T) {
	onceIsEnough(t)
	raw := tarOf(t, "zeros", strings.Repeat("\x00", 8<<20))
	for n, s := range map[string]sample{"gzip": plainLayer(oci+"+gzip", gz(t, raw), raw), "zstd": plainLayer(oci+"+zstd", zst(t, raw), raw)} {
		t.Run(n+" beyond the cap", func(t *testing.T) {
			_, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, nil, t.TempDir(), Options{Mode: Plain, MaxBytes: 1 << 20})
			if !errors.Is(err, ErrTooLarge) {
				t.Errorf("got %v", err)
			}
		})
		t.Run(n+" below the cap is told of", func(t *testing.T) {
			var log bytes.Buffer
			opts := Options{Mode: Plain, Log: slog.New(slog.NewTextHandler(&log, nil))}
			if _, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, nil, t.TempDir(), opts); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(log.String(), "Layer inflates unusually") {
				t.Errorf("log: %q", log.String())
			}
		})
	}
}

// TestZeroBomb holds that the cap is on the tar stream too, not only on the
// files in it.
func TestZeroBomb(t *testing.T) {
	raw := append(tarOf(t, "a", "1"), make([]byte, 8<<20)...)
	s := plainLayer(oci+"+gzip", gz(t, raw), raw)
	_, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, nil, t.TempDir(), Options{Mode: Plain, MaxBytes: 1 << 20})
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestTarBeyondTheCapIsNotRead: the size of an uncompressed layer is in its
// descriptor, encrypted or not.
func TestTarBeyondTheCapIsNotRead(t *testing.T) {
	raw := tarOf(t, "a", noise(1<<20))
	plain := plainLayer(oci, raw, raw)
	sealed, _ := seal(t, plain)
	for _, s := range []sample{plain, sealed} {
		blob := &counting{Reader: bytes.NewReader(s.blob)}
		_, err := Apply(t.Context(), blob, s.spec, s.key, t.TempDir(), Options{Mode: Plain, MaxBytes: 1 << 20})
		if !errors.Is(err, ErrTooLarge) || blob.n != 0 {
			t.Errorf("%v after %d bytes", err, blob.n)
		}
	}
}

func TestApplyPassesOnReadErrors(t *testing.T) {
	raw := tarOf(t, "a", noise(1<<20))
	plain := plainLayer(oci, raw, raw)
	sealed, _ := seal(t, plain)
	lost := errors.New("connection lost")
	for n, s := range map[string]sample{"plain": plain, "encrypted": sealed} {
		broken := io.MultiReader(bytes.NewReader(s.blob[:600000]), iotest.ErrReader(lost))
		if _, err := Apply(t.Context(), broken, s.spec, s.key, t.TempDir(), Options{Mode: Plain}); !errors.Is(err, lost) {
			t.Errorf("%s: %v", n, err)
		}
		broken = io.MultiReader(bytes.NewReader(s.blob[:600000]), iotest.ErrReader(io.ErrUnexpectedEOF))
		if _, err := Apply(t.Context(), broken, s.spec, s.key, t.TempDir(), Options{Mode: Plain}); !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: %v", n, err)
		}
	}
}

// hanging blocks in Read until it is closed.
type hanging struct {
	io.Reader
	reading, closed chan struct{}
}

func (h *hanging) Read(p []byte) (int, error) {
	if n, err := h.Reader.Read(p); err == nil {
		return n, nil
	}
	close(h.reading)
	<-h.closed
	return 0, io.ErrClosedPipe
}

func (h *hanging) Close() error { close(h.closed); return nil }

func TestApplyEndsWithContext(t *testing.T) {
	raw := tarOf(t, "a", noise(3<<20))
	s, _ := seal(t, plainLayer(oci+"+gzip", gz(t, raw), raw))
	blob := &hanging{bytes.NewReader(s.blob[:2<<20]), make(chan struct{}), make(chan struct{})}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("why")
	go func() { <-blob.reading; cancel(why) }()
	if _, err := Apply(ctx, blob, s.spec, s.key, t.TempDir(), Options{Mode: Plain}); !errors.Is(err, why) {
		t.Errorf("got %v", err)
	}
}

func TestApplyIntoMissingDirectory(t *testing.T) {
	raw := tarOf(t, "a", "1")
	s := plainLayer(oci, raw, raw)
	_, err := Apply(t.Context(), bytes.NewReader(s.blob), s.spec, nil, t.TempDir()+"/missing", Options{Mode: Plain})
	if err == nil || errors.Is(err, ErrArchive) {
		t.Errorf("got %v", err)
	}
}
