package relyingparty

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

// prefix comes before every endpoint of the protocol.
const prefix = "/kbs/v0/"

// maxPathBytes caps the decoded path of a request, and its query: policies get
// both.
const maxPathBytes = 4096

// call is one request on its way through a handler.
type call struct {
	w    http.ResponseWriter
	r    *http.Request
	id   string // of the request, in the log and in every refusal
	log  *slog.Logger
	path []string          // segments after the endpoint or plugin name
	args map[string]string // query
}

// serve is the whole server: no http.ServeMux, because that answers a path with
// "//" by a redirect, and the protocol has such paths.
func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	id := rand.Text()[:16]
	w.Header().Set("X-Request-Id", id)
	ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
	defer cancel()
	r.Body = http.MaxBytesReader(w, r.Body, s.cfg.MaxBodyBytes)
	c := &call{
		w: w, r: r.WithContext(ctx), id: id,
		log: s.log.With("req", id, "method", r.Method, "path", podvm.Printable(r.URL.Path, 256)),
	}
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("Handler panicked", "panic", podvm.Printable(fmt.Sprint(p), 1024))
			s.fail(c, fault(variantPlugin, detailPlugin, fmt.Errorf("panic")))
		}
	}()
	s.metrics.add("kbs_http_requests_total")
	err := s.dispatch(c) //nolint:contextcheck // the context travels in c.r
	c.log = c.log.With("dur", time.Since(start).Round(time.Microsecond))
	if err != nil {
		s.fail(c, err)
		return
	}
	c.log.Info("Request served")
}

// dispatch finds the handler: a built-in endpoint by name and method, or else
// the plugin of that name.
func (s *Server) dispatch(c *call) error {
	switch c.r.URL.Path {
	case "/healthz":
		return only(c, http.MethodGet, func(*call) error { return nil })
	case "/metrics":
		return only(c, http.MethodGet, s.serveMetrics)
	}
	if !slices.Contains([]string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete}, c.r.Method) {
		c.w.Header().Set("Allow", "GET, POST, PUT, DELETE")
		return &failure{status: http.StatusMethodNotAllowed, variant: "MethodNotAllowed", detail: "Method not allowed"}
	}
	name, err := c.parse()
	if err != nil {
		return err
	}
	if len(c.path) == 0 {
		switch c.r.Method + " " + name {
		case "POST auth":
			return s.serveAuth(c)
		case "POST attest":
			return s.serveAttest(c)
		case "POST attestation-policy":
			return s.serveSetAttestationPolicy(c)
		case "POST resource-policy":
			return s.serveSetResourcePolicy(c)
		case "GET resource-policy":
			return s.serveListResourcePolicies(c)
		case "POST reference-value":
			return s.serveSetReferenceValues(c)
		}
	}
	if name == "reference-value" && c.r.Method == http.MethodGet && len(c.path) > 0 {
		return s.serveReferenceValue(c)
	}
	if name == resourcePlugin {
		return s.serveResource(c)
	}
	return &failure{
		status: http.StatusNotFound, variant: "PluginNotFound",
		detail: "Plugin not found: " + podvm.Printable(name, 64),
	}
}

// only serves the one method that an endpoint has.
func only(c *call, method string, handler func(*call) error) error {
	if c.r.Method != method {
		c.w.Header().Set("Allow", method)
		return &failure{status: http.StatusMethodNotAllowed, variant: "MethodNotAllowed", detail: "Method not allowed"}
	}
	return handler(c)
}

// parse splits the decoded path, as upstream does: %2F makes a segment. It
// returns the name of the endpoint. A query with a name twice is refused: a
// policy would see only one of the two.
func (c *call) parse() (string, error) {
	rest, ok := strings.CutPrefix(c.r.URL.Path, prefix)
	if !ok || rest == "" || len(rest) > maxPathBytes {
		return "", invalidPath("path is not under " + prefix)
	}
	segments := strings.Split(rest, "/")
	c.path = segments[1:]
	if len(c.r.URL.RawQuery) > maxPathBytes {
		return "", invalidPath("query too long")
	}
	query, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return "", invalidPath("malformed query")
	}
	c.args = map[string]string{}
	for name, values := range query {
		if len(values) != 1 {
			return "", invalidPath("a query parameter appears twice")
		}
		c.args[name] = values[0]
	}
	return segments[0], nil
}

func invalidPath(why string) error {
	return &failure{status: http.StatusNotFound, variant: "InvalidRequestPath", detail: "Invalid request path: " + why}
}
