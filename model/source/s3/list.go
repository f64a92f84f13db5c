package s3

import (
	"context"
	"encoding/xml"
	"errors"
	"net/url"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bucket"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/sigv4"
)

// Limits of a listing.
const (
	maxPage  = 8 << 20 // bytes: a thousand keys, all of whose bytes are escaped
	maxPages = bucket.MaxPages
)

// page is an answer to ListObjectsV2.
// Source: Amazon S3 API Reference, ListObjectsV2.
type page struct {
	XMLName               xml.Name
	EncodingType          string
	IsTruncated           bool
	NextContinuationToken string
	Contents              []entry
}

type entry struct {
	Key  string
	Size int64
	ETag string
}

// List implements source.Source: the object of the address, or else all that are
// in the folder of that name. Keys that end with a slash and empty objects, which
// stand for folders in some tools, are left out. Unlike upstream, siblings whose
// names merely begin alike are not listed.
func (s *Source) List(ctx context.Context) ([]source.Object, error) { return s.place.List(ctx, s.page) }

func (e *entry) object(path string) source.Object {
	o := source.Object{Path: path, Size: e.Size}
	if tag := strings.Trim(e.ETag, `"`); tag != "" && len(tag) <= 128 && !strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
		o.Version = `"` + tag + `"`
	}
	return o
}

// page fetches one page of a listing.
func (s *Source) page(ctx context.Context, prefix string, most int, next string) (bucket.Page, error) {
	q := url.Values{"list-type": {"2"}, "prefix": {prefix}, "max-keys": {strconv.Itoa(most)}, "encoding-type": {"url"}}
	if next != "" {
		q.Set("continuation-token", next)
	}
	var raw []byte
	err := s.located(ctx, func(req httpsrc.Request, base string) error {
		req.URL = base + "?" + sigv4.Query(q)
		var err error
		_, raw, err = s.http.Document(ctx, req, maxPage)
		return err
	})
	if err != nil {
		return bucket.Page{}, err
	}
	p, err := parsePage(raw)
	if err != nil {
		return bucket.Page{}, listing.Unacceptable("not one of S3: %s", podvm.Printable(err.Error(), 200))
	}
	var out bucket.Page
	if p.IsTruncated {
		out.Next = p.NextContinuationToken
		if out.Next == "" {
			return bucket.Page{}, listing.Unacceptable("it goes on, and does not say where")
		}
	}
	for _, e := range p.Contents {
		out.Objects = append(out.Objects, e.object(e.Key))
	}
	return out, nil
}

// parsePage reads a page. Keys come escaped, since XML cannot carry all of them.
func parsePage(raw []byte) (*page, error) {
	var p page
	if err := xml.Unmarshal(raw, &p); err != nil {
		return nil, err
	}
	if p.XMLName.Local != "ListBucketResult" {
		return nil, errors.New("not a ListBucketResult")
	}
	if p.EncodingType == "url" {
		for i := range p.Contents {
			key, err := url.QueryUnescape(p.Contents[i].Key)
			if err != nil {
				return nil, errors.New("a key that is not escaped as it must be")
			}
			p.Contents[i].Key = key
		}
	}
	for _, e := range p.Contents {
		if e.Key == "" || e.Size < 0 {
			return nil, errors.New("an object without a key, or with a size below 0")
		}
	}
	return &p, nil
}
