package httpsrc

import (
	"fmt"
	"net/http"
	"strings"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/podvm"
)

// maxVersion caps what is kept of a validator, in bytes.
const maxVersion = 256

// VersionOf returns what an answer says about the version of its object: its
// entity tag, else when it was last modified, else "".
// Source: RFC 9110 section 8.8.
func VersionOf(h http.Header) string {
	v := h.Get("Etag")
	if v == "" {
		v = h.Get("Last-Modified")
	}
	if len(v) > maxVersion {
		return ""
	}
	return v
}

// conditions are the headers that hold a server to a version.
func conditions(version string, h http.Header) {
	switch {
	case strings.HasPrefix(version, `"`):
		h.Set("If-Match", version)
	case version != "" && !strings.HasPrefix(version, "W/"): // which If-Match never matches
		h.Set("If-Unmodified-Since", version)
	}
}

// checkVersion compares what an answer says about its version with the one it
// must have. A server that says nothing was told the conditions. Errors:
// source.ErrChanged.
func checkVersion(version string, h http.Header) error {
	name := "Last-Modified"
	if strings.HasPrefix(version, `"`) || strings.HasPrefix(version, "W/") {
		name = "Etag"
	}
	if have := h.Get(name); version != "" && have != "" && have != version {
		return podvm.Explain(fmt.Errorf("%w: it is %s, was %s", source.ErrChanged, podvm.Printable(have, 80), podvm.Printable(version, 80)),
			"an object changed after it was listed: start again")
	}
	return nil
}
