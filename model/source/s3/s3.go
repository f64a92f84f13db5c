package s3

import (
	"context"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bucket"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/settings"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// Prefix is how addresses of this kind begin: s3://BUCKET[/KEY or /PREFIX].
const Prefix = "s3://"

// Source is a bucket, or an object or a folder in one. It implements
// source.Source; its user closes it.
type Source struct {
	bucket string
	place  bucket.Place
	conf   config
	http   *httpsrc.Client
	keys   keys
	clock  *sigv4.Clock

	mu     sync.Mutex
	region string // what is signed for, and part of AWS's host names
}

// New returns the source at address. It touches no network. Errors:
// source.ErrUsage.
func New(address string, env *settings.Env) (*Source, error) {
	rest, ok := strings.CutPrefix(address, Prefix)
	name, key, _ := strings.Cut(rest, "/")
	if !ok || !isBucket(name) {
		return nil, settings.Usage("%s: not s3://BUCKET/PREFIX", podvm.Printable(address, 200))
	}
	key = strings.TrimLeft(key, "/")
	if len(key) > source.MaxName {
		return nil, settings.Usage("s3://%s: a prefix of %d bytes: at most %d", name, len(key), source.MaxName)
	}
	conf, err := readConfig(env, name)
	if err != nil {
		return nil, err
	}
	client, err := httpsrc.New(conf.http)
	if err != nil {
		return nil, err
	}
	s := &Source{bucket: name, place: bucket.Place{Key: key}, conf: conf, http: client, region: conf.region, clock: sigv4.NewClock(time.Now)}
	s.keys, err = newKeys(env, conf)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Close closes idle connections.
func (s *Source) Close() {
	s.http.Close()
	s.keys.close()
}

// String implements source.Source.
func (s *Source) String() string { return podvm.Printable(Prefix+s.bucket+"/"+s.place.Key, 400) }

// Concurrency is how many files the environment wants to be fetched at once, 4
// unless S3_MAX_FILE_CONCURRENCY says something else.
func (s *Source) Concurrency() int { return s.conf.concurrency }

// Open implements source.Source.
func (s *Source) Open(ctx context.Context, o source.Object, off, n int64) (r io.ReadCloser, err error) {
	key, err := s.place.KeyOf(o.Path)
	if err != nil {
		return nil, err
	}
	err = s.located(ctx, func(req httpsrc.Request, base string) error {
		req.URL = base + sigv4.EscapePath(key)
		req.Version = o.Version
		r, err = s.http.Open(ctx, req, off, n, o.Size)
		return err
	})
	return r, err
}

// located runs do with a request to fill in and the URL of the bucket, which ends
// with a slash. It does so again when AWS says that the bucket is in another
// region.
func (s *Source) located(ctx context.Context, do func(httpsrc.Request, string) error) error {
	s.mu.Lock()
	region := s.region
	s.mu.Unlock()
	err := do(s.request(ctx, region), s.conf.base(region))
	if s.moved(region) {
		s.mu.Lock()
		region = s.region
		s.mu.Unlock()
		err = do(s.request(ctx, region), s.conf.base(region))
	}
	return err
}

// moved tells whether the region has become another one than region.
func (s *Source) moved(region string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.region != region
}

// request is a request that is signed for a region.
func (s *Source) request(ctx context.Context, region string) httpsrc.Request {
	return httpsrc.Request{
		Sign: func(req *http.Request) error {
			cred, err := s.keys.get(ctx)
			if err != nil || cred == nil {
				return err
			}
			req.Header.Set("X-Amz-Content-Sha256", emptyHash)
			sigv4.Sign(req, emptyHash, cred, region, "s3", s.clock.Now())
			return nil
		},
		Explain: s.explain,
	}
}

var emptyHash = sigv4.Hash(nil)
