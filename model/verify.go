package model

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/model/sealed"
	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
)

// Stored is a sealed model where it is kept.
type Stored struct {
	source.Source
	Objects []source.Object
	// Manifest is as it is stored, nil if there is none.
	Manifest []byte
}

// OpenStored lists the model at address, with the environment of host, and reads
// its manifest. Its user closes it. Errors: those of package source.
func OpenStored(ctx context.Context, address string, host podvm.Host, log *slog.Logger) (*Stored, error) {
	env, err := settings.Load(host, log)
	if err != nil {
		return nil, err
	}
	in := input{address: address}
	if in.Source, err = open(address, env); err != nil {
		return nil, err
	}
	s := &Stored{Source: in.Source}
	if in.objects, err = in.List(ctx); err != nil {
		s.Close()
		return nil, about(in.String(), fmt.Errorf("listing: %w", err))
	}
	s.Objects = in.objects
	if in.findManifest(); in.manifest == nil {
		return s, nil
	}
	if s.Manifest, err = readManifest(ctx, in.Source, *in.manifest); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close closes the source.
func (s *Stored) Close() {
	if c, ok := s.Source.(interface{ Close() }); ok {
		c.Close()
	}
}

// OpenManifest opens the manifest. Errors: source.ErrNotFound when there is none, those of
// sealed.OpenManifest.
func (s *Stored) OpenManifest(k *sealed.Key) (*sealed.Manifest, error) {
	if s.Manifest == nil {
		return nil, podvm.Explain(source.ErrNotFound, s.String()+" has no object "+sealed.ManifestObject+": it is not a sealed model")
	}
	return sealed.OpenManifest(k, bytes.Clone(s.Manifest))
}

// Verify reads and checks every byte of the files in m, and tells progress how
// many of them are done, in several goroutines at once. Errors: sealed.ErrIntegrity
// with the file's name, those of the source.
func (s *Stored) Verify(ctx context.Context, k *sealed.Key, m *sealed.Manifest, progress func(int64)) error {
	objects := byPath(s.Objects)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for _, f := range m.Files {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			file, err := sealedFile(k, m, f, objects)
			if err == nil && (f.Sealed || f.Size > 0) {
				err = s.verify(gctx, file, progress)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.Path, err)
			}
			return nil
		})
	}
	return errors.Join(g.Wait(), ctx.Err())
}

// verify reads one object.
func (s *Stored) verify(ctx context.Context, f fetch.File, progress func(int64)) error {
	body, err := s.Open(ctx, f.Object, 0, -1)
	if err != nil {
		return err
	}
	defer body.Close() //nolint:errcheck // read-only
	if f.Cipher == nil {
		err = verifyDigest(ctx, body, f, progress)
	} else {
		err = verifySegments(ctx, body, f, progress)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the object is shorter than it must be", sealed.ErrIntegrity)
	}
	if err != nil {
		return err
	}
	if n, _ := io.ReadFull(body, make([]byte, 1)); n > 0 {
		return fmt.Errorf("%w: the object is longer than it must be", sealed.ErrIntegrity)
	}
	return nil
}

func verifySegments(ctx context.Context, body io.Reader, f fetch.File, progress func(int64)) error {
	var h sealed.Header
	if _, err := io.ReadFull(body, h[:]); err != nil {
		return err
	}
	if _, err := sealed.ParseHeader(h[:]); err != nil {
		return err
	}
	c, err := f.Cipher(h)
	if err != nil {
		return err
	}
	l := sealed.Layout{Size: f.Size}
	buf := make([]byte, sealed.SegmentSize)
	for i := range l.Segments() {
		_, n := l.Stored(i)
		if _, err := io.ReadFull(body, buf[:n]); err != nil {
			return err
		}
		plain, err := c.Open(i, i == l.Segments()-1, buf[:n])
		if err != nil {
			return err
		}
		progress(int64(len(plain)))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

func verifyDigest(ctx context.Context, body io.Reader, f fetch.File, progress func(int64)) error {
	hash := sha256.New()
	buf := make([]byte, 1<<20)
	for left := f.Size; left > 0; {
		n, err := io.ReadFull(body, buf[:min(left, int64(len(buf)))])
		if err != nil {
			return err
		}
		hash.Write(buf[:n])
		left -= int64(n)
		progress(int64(n))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if !bytes.Equal(hash.Sum(nil), f.SHA256) {
		return fetch.ErrDigest
	}
	return nil
}
