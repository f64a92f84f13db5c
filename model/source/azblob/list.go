package azblob

import (
	"context"
	"encoding/xml"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/internal/bucket"
	"github.com/sealpod/sealpod/model/source/internal/httpsrc"
	"github.com/sealpod/sealpod/model/source/internal/listing"
	"github.com/sealpod/sealpod/podvm"
)

// page fetches one page of a listing.
func (s *Source) page(ctx context.Context, prefix string, most int, next string) (bucket.Page, error) {
	q := url.Values{"restype": {"container"}, "comp": {"list"}, "prefix": {prefix}, "maxresults": {strconv.Itoa(most)}}
	if next != "" {
		q.Set("marker", next)
	}
	_, raw, err := s.http.Document(ctx, s.request("/"+s.container, q), bucket.MaxPage)
	if err != nil {
		return bucket.Page{}, err
	}
	p, err := parsePage(raw)
	if err != nil {
		return p, listing.Unacceptable("not one of Azure: %s", podvm.Printable(err.Error(), 200))
	}
	return p, nil
}

// parsePage reads an answer to List Blobs.
// Source: Azure Storage REST API, List Blobs.
func parsePage(raw []byte) (bucket.Page, error) {
	var in struct {
		XMLName xml.Name
		Blob    []struct {
			Name struct {
				Encoded bool   `xml:",attr"`
				Text    string `xml:",chardata"`
			}
			Properties struct {
				Size int64 `xml:"Content-Length"`
				Etag string
				Type string `xml:"ResourceType"` // "directory", where folders are real
			}
		} `xml:"Blobs>Blob"`
		NextMarker string
	}
	if err := xml.Unmarshal(raw, &in); err != nil {
		return bucket.Page{}, err
	}
	if in.XMLName.Local != "EnumerationResults" {
		return bucket.Page{}, errors.New("not EnumerationResults")
	}
	p := bucket.Page{Next: in.NextMarker}
	for _, b := range in.Blob {
		name := b.Name.Text
		if b.Name.Encoded { // it has characters that XML has not
			var err error
			if name, err = url.PathUnescape(name); err != nil {
				return bucket.Page{}, errors.New("a name that is not escaped as it must be")
			}
		}
		if name == "" || b.Properties.Size < 0 {
			return bucket.Page{}, errors.New("a blob without a name, or with a size below 0")
		}
		o := source.Object{Path: name, Size: b.Properties.Size}
		if b.Properties.Type == "directory" {
			o.Size = 0
		}
		if tag := strings.Trim(b.Properties.Etag, `"`); tag != "" && len(tag) <= 128 && !strings.ContainsFunc(tag, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' }) {
			o.Version = `"` + tag + `"`
		}
		p.Objects = append(p.Objects, o)
	}
	return p, nil
}

// explain implements httpsrc.Request.Explain.
// Source: Azure Storage REST API, "Status and error codes".
func (s *Source) explain(f *httpsrc.Fault) (string, error) {
	var a struct {
		XMLName       xml.Name `xml:"Error"`
		Code, Message string
	}
	_ = xml.Unmarshal(f.Body, &a) // blobs that are not found have no body
	code := f.Header.Get("X-Ms-Error-Code")
	if code == "" {
		code = a.Code
	}
	text, _, _ := strings.Cut(a.Message, "\n") // the rest is a request's number and time
	if code != "" {
		text = code + ": " + text
	}
	anonymous := ""
	if s.key == nil && s.tokens == nil && len(s.access) == 0 {
		anonymous = " (no credentials of Azure are set)"
	}
	switch code {
	case "PublicAccessNotPermitted", "NoAuthenticationInformation", "InvalidAuthenticationInfo", "AuthenticationFailed":
		return text + anonymous, source.ErrRefused
	case "ResourceNotFound": // of containers that are private, too
		return text + anonymous, source.ErrNotFound
	}
	if f.Status == http.StatusUnauthorized || f.Status == http.StatusForbidden {
		text += anonymous
	}
	return text, nil
}
