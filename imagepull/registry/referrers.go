package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// maxPages is how many pages of a list of referrers are read: with the smallest
// pages in use, of 25 entries, more bundles than are looked at.
const maxPages = 16

// errNoAPI says that a registry does not list referrers by the API.
var errNoAPI = errors.New("no referrers API")

// referrers lists the bundles that refer to digest.
func (r *Repository) referrers(ctx context.Context, digest string) ([]Descriptor, error) {
	list, err := r.listed(ctx, digest)
	if !errors.Is(err, errNoAPI) {
		return list, err
	}
	algorithm, hex, _ := strings.Cut(digest, ":")
	raw, _, err := r.manifest(ctx, algorithm+"-"+hex[:min(len(hex), 64)])
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return parseReferrers(raw)
}

// listed asks the referrers API, page by page. A list that is not had to its end
// is an error: what is missing may be the signature, and nobody would know.
func (r *Repository) listed(ctx context.Context, digest string) (list []Descriptor, err error) {
	query := ""
	for page := range maxPages {
		var raw []byte
		var answer http.Header
		err := r.retry(ctx, "referrers of "+digest, func() (err error) {
			raw, answer, err = r.document(ctx, "/referrers/"+digest+query, http.Header{"Accept": {typeOCIIndex}}, maxManifest)
			return err
		})
		if page == 0 && unknownAPI(err) {
			return nil, errNoAPI
		}
		if err != nil {
			return nil, err
		}
		more, err := parseReferrers(raw)
		if err != nil && page == 0 {
			return nil, errNoAPI // not everything that answers knows the API
		}
		if err != nil {
			return nil, err
		}
		list = append(list, more...)
		next, ok := nextPage(answer)
		if !ok {
			return list, nil
		}
		query = "?" + next
	}
	return nil, fmt.Errorf("%w: the list of referrers has more than %d pages", podvm.ErrTooLarge, maxPages)
}

// nextPage returns the query of the link to the next page, if there is one. The
// rest of the link is not needed, and nobody is led elsewhere by it.
// Source: OCI distribution-spec v1.1, "Listing Referrers"; RFC 8288 section 3.
func nextPage(answer http.Header) (query string, ok bool) {
	for _, h := range answer.Values("Link") {
		for link := range strings.SplitSeq(h, ",") {
			target, params, _ := strings.Cut(link, ">")
			target, isLink := strings.CutPrefix(strings.TrimSpace(target), "<")
			params = strings.ToLower(strings.ReplaceAll(params, `"`, ""))
			if !isLink || !strings.Contains(strings.ReplaceAll(params, " ", "")+";", "rel=next;") {
				continue
			}
			if u, err := url.Parse(target); err == nil && u.RawQuery != "" {
				return u.Query().Encode(), true
			}
			return "", true // the first page again, and so no end
		}
	}
	return "", false
}

// unknownAPI tells a registry without the API from one that has a problem.
func unknownAPI(err error) bool {
	var status *statusError
	if !errors.As(err, &status) {
		return false
	}
	switch status.code {
	case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented:
		return true
	}
	return false
}

// parseReferrers returns the bundles among the entries of an index.
func parseReferrers(raw []byte) ([]Descriptor, error) {
	doc, isIndex, err := parseDocument(raw)
	if err == nil && (!isIndex || doc.Manifests == nil) {
		err = fmt.Errorf("%w: referrers are not an index", ErrManifest)
	}
	if err != nil {
		return nil, err
	}
	// As many entries as before, and those were counted.
	var types struct {
		Manifests []struct {
			ArtifactType string `json:"artifactType"`
		} `json:"manifests"`
	}
	if err := json.Unmarshal(raw, &types); err != nil || len(types.Manifests) != len(*doc.Manifests) {
		return nil, fmt.Errorf("%w: referrers are malformed", ErrManifest)
	}
	var list []Descriptor
	for i, d := range *doc.Manifests {
		if strings.HasPrefix(types.Manifests[i].ArtifactType, bundleType) {
			list = append(list, d)
		}
	}
	return list, nil
}
