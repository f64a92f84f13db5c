package model

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/sealpod/sealpod/model/agefile"
	"github.com/sealpod/sealpod/model/jwe"
	"github.com/sealpod/sealpod/model/openssl"
	"github.com/sealpod/sealpod/model/source"
)

// way is a way in which single files are encrypted.
type way struct {
	extension string // of names, in lower case
	magic     string // which content begins with
	authentic bool   // only the key's owner can make such a file
	num, den  int64  // how much plaintext there is for ciphertext, at most
	open      func(ctx context.Context, object io.Reader, file *os.File) (int64, error)
}

// opener is how one object becomes a file.
type opener struct {
	*way
	path string
}

// plain is about how much plaintext an object of size bytes has.
func (o opener) plain(size int64) int64 {
	if o.way == nil {
		return max(size, 0)
	}
	return max(size, 0) / o.den * o.num
}

// isDemo tells whether an object is the model of the Red Hat demo.
// Source: confidential-devhub/coco-kserve-storage-initializer
// kserve-storage-initializer/decrypt.sh at a39fba3.
func (r *request) isDemo(path string) bool {
	return r.demo != "" && (path == r.demo+".enc" || path == "1/"+r.demo+".enc")
}

// openers finds the encrypted ones among objects, by path.
func (r *request) openers(ctx context.Context, src source.Source, objects []source.Object) (map[string]opener, error) {
	out := map[string]opener{}
	switch {
	case r.demo != "":
		pass, err := openssl.ParseKeyFile(r.key)
		if err != nil {
			return nil, err
		}
		r.wipe = append(r.wipe, pass.Wipe)
		w := &way{num: 1, den: 1, open: pass.Open}
		for _, at := range []string{r.demo, "1/" + r.demo} { // the first that is there, as in the demo
			if slices.ContainsFunc(objects, func(o source.Object) bool { return o.Path == at+".enc" }) {
				r.Log.Warn("The model is encrypted by openssl enc, which authenticates nothing", "object", at+".enc")
				out[at+".enc"] = opener{w, at}
				break
			}
		}
		return out, nil
	case !r.confidential:
		return out, nil
	}
	w, err := r.way()
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(r.workers)
	for _, o := range objects {
		if strings.EqualFold(path.Ext(o.Path), w.extension) {
			mu.Lock()
			out[o.Path] = opener{w, o.Path[:len(o.Path)-len(w.extension)]}
			mu.Unlock()
			continue
		}
		g.Go(func() error {
			ok, err := begins(ctx, src, o, w.magic)
			if ok {
				mu.Lock()
				out[o.Path] = opener{w, o.Path}
				mu.Unlock()
			}
			return err
		})
	}
	return out, g.Wait()
}

// way is the one that goes with the key.
func (r *request) way() (*way, error) {
	if agefile.Is(r.key) {
		id, err := agefile.ParseIdentity(r.key)
		if err != nil {
			return nil, err
		}
		return &way{extension: agefile.Extension, magic: agefile.Magic, num: 1, den: 1, open: id.Open}, nil
	}
	k, err := jwe.ParseKey(r.key)
	if err != nil {
		return nil, err
	}
	r.wipe = append(r.wipe, k.Wipe)
	// The header of a JWE is JSON, in base64url.
	return &way{extension: ".jwe", magic: "eyJ", authentic: true, num: 3, den: 4, open: k.Open}, nil
}

// begins tells whether an object begins with text.
func begins(ctx context.Context, src source.Source, o source.Object, text string) (bool, error) {
	if o.Size >= 0 && o.Size < int64(len(text)) {
		return false, nil
	}
	body, err := src.Open(ctx, o, 0, int64(len(text)))
	if errors.Is(err, source.ErrNoRanges) {
		body, err = src.Open(ctx, o, 0, -1)
	}
	if err != nil {
		return false, fmt.Errorf("looking at %s: %w", o.Path, err)
	}
	defer body.Close()
	head := make([]byte, len(text))
	if _, err := io.ReadFull(body, head); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		return false, fmt.Errorf("looking at %s: %w", o.Path, err)
	}
	return string(head) == text, nil
}
