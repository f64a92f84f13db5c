package rest

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sealpod/sealpod/podvm"
)

const (
	// callTimeout bounds one call to the data hub or the attestation agent.
	// Source: guest-components api-server-rest/src/main.rs at 8246e5e.
	callTimeout = 50 * time.Second
	// peerWait is how long a request waits for one of them that is not up: long
	// enough for a restart, short enough for a person at a prompt.
	peerWait = 10 * time.Second
	// maxRequests is how many requests run at once; further ones wait, at most
	// slotWait.
	maxRequests = 64
	slotWait    = 30 * time.Second
	// maxSlow is how many of them are on one of slowPaths: evidence takes seconds
	// on some machines, and who asks for much of it is to keep others from
	// nothing else. All these paths together leave a quarter.
	maxSlow = 12
	// maxBody caps a request body in bytes: an event has to fit a ttrpc frame.
	maxBody = 1 << 20
)

// slowPaths are those that lead to a TEE.
var slowPaths = []string{"/aa/token", "/aa/evidence", "/aa/additional-evidence", "/aa/aael"}

// ReasonHeader is a header of answers with status 500 that says in a word why:
// "denied", "not-found" or "unreachable". It is missing where none of them fits.
// Upstream has no such header.
const ReasonHeader = "Sealpod-Reason"

// ErrFeatures says that a feature flag has none of the known values.
var ErrFeatures = errors.New("unknown features: want resource, attestation or all")

// Config says what to serve and whom to ask.
type Config struct {
	// Features is "resource", "attestation" or "all".
	Features string
	CDHAddr  string // unix://PATH of the data hub
	AAAddr   string // unix://PATH of the attestation agent
	// Version is the version to name in /info.
	Version string
	Log     *slog.Logger // nil: slog.Default

	// wait replaces peerWait; 0 keeps it.
	wait time.Duration
}

// Handler serves the routes of api-server-rest:
//
//	GET  /info
//	GET  /aa/token?token_type=
//	GET  /aa/evidence?runtime_data=[&encoding=base64]
//	GET  /aa/additional-evidence?runtime_data=[&encoding=base64]
//	POST /aa/aael
//	ANY  /cdh/resource/<path>
//
// It connects at the first request that needs it. Close it when done.
// Source: guest-components api-server-rest/src/router.rs at 8246e5e.
type Handler struct {
	features, version string
	cdh, aa           *peer // nil where the feature is off
	slots             chan struct{}
	slow              map[string]chan struct{} // by path
	started           time.Time
	count             *counters
	log               *slog.Logger
}

// New checks cfg and returns a handler. Errors: ErrFeatures, or an address that
// is not unix://PATH.
func New(cfg Config) (*Handler, error) {
	h := &Handler{features: cfg.Features, version: cfg.Version, log: cfg.Log,
		slots: make(chan struct{}, maxRequests), slow: map[string]chan struct{}{}, started: time.Now()}
	h.count = newCounters(h)
	for _, path := range slowPaths {
		h.slow[path] = make(chan struct{}, maxSlow)
	}
	if h.log == nil {
		h.log = slog.Default()
	}
	if cfg.wait == 0 {
		cfg.wait = peerWait
	}
	switch cfg.Features {
	case "resource", "attestation", "all":
	default:
		return nil, ErrFeatures
	}
	var err error
	if cfg.Features != "attestation" {
		if h.cdh, err = newPeer("CDH", cfg.CDHAddr, cfg.wait); err != nil {
			return nil, err
		}
	}
	if cfg.Features != "resource" {
		if h.aa, err = newPeer("Attestation Agent", cfg.AAAddr, cfg.wait); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// Close closes the connections.
func (h *Handler) Close() error {
	return errors.Join(h.cdh.close(), h.aa.close())
}

// ServeHTTP implements http.Handler. There is no ServeMux in between: it would
// clean paths and redirect.
func (h *Handler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	path, w := rawPath(r), &counted{ResponseWriter: rw}
	defer func() { h.count.answered(path, w) }()
	if !mayAsk(r) {
		answer(w, http.StatusForbidden, "Forbidden")
		return
	}
	pools := []chan struct{}{h.slots}
	if slow, ok := h.slow[path]; ok {
		pools = []chan struct{}{slow, h.slots}
	}
	patience := time.NewTimer(slotWait)
	defer patience.Stop()
	for _, slots := range pools {
		select {
		case slots <- struct{}{}:
			defer func() { <-slots }()
		case <-r.Context().Done():
			return
		case <-patience.C:
			answer(w, http.StatusInternalServerError, "too many requests at once")
			return
		}
	}
	if r.Body != http.NoBody {
		// Also for a body nobody reads: the server reads on to the next request.
		setReadDeadline(w, time.Now().Add(readTimeout))
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	}
	id := newID()
	c := &call{w: w, r: r, h: h, id: id, log: h.log.With("req", id)}
	switch {
	case path == "/info":
		c.info()
	case strings.HasPrefix(path, "/aa/"):
		c.attestation(path)
	case strings.HasPrefix(path, "/cdh/"):
		c.data(path)
	default:
		c.urlNotFound()
	}
}

// setReadDeadline bounds reading the body; the zero time lifts the bound.
func setReadDeadline(w http.ResponseWriter, t time.Time) {
	_ = http.NewResponseController(w).SetReadDeadline(t) // only tests have writers without
}

// mayAsk tells whether a request's sender is on this machine. Who came by a unix
// socket was let in by its permissions and has no address.
func mayAsk(r *http.Request) bool {
	if at, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok && at.Network() == "unix" {
		return true
	}
	return loopback(r.RemoteAddr)
}

// loopback tells whether the peer address of a connection is on this machine.
func loopback(addr string) bool {
	ap, err := netip.ParseAddrPort(addr)
	return err == nil && ap.Addr().Unmap().IsLoopback()
}

// rawPath returns the path of a request as it was sent, without the query.
func rawPath(r *http.Request) string {
	raw := r.RequestURI
	if !strings.HasPrefix(raw, "/") { // absolute form, as sent to a proxy
		raw = r.URL.EscapedPath()
	}
	if i := strings.IndexAny(raw, "?#"); i >= 0 {
		raw = raw[:i]
	}
	return raw
}

// call is one request on its way.
type call struct {
	w   http.ResponseWriter
	r   *http.Request
	h   *Handler
	id  string
	log *slog.Logger
}

func (c *call) badRequest()  { answer(c.w, http.StatusBadRequest, "BAD REQUEST") }
func (c *call) urlNotFound() { answer(c.w, http.StatusNotFound, "URL NOT FOUND") }

// fault answers 500 with upstream's text, a cause that may leave the guest, and
// the id under which the journal has the rest.
func (c *call) fault(text string, err error) {
	id := c.id
	if e := new(peerError); errors.As(err, &e) {
		if e.request != "" {
			id = e.request // the other daemon's, where the reason is
		}
		if e.word != "" {
			c.w.Header().Set(ReasonHeader, e.word)
		}
	}
	c.log.Error("Request failed", "path", podvm.Printable(rawPath(c.r), 300), "peer_req", id, "err", err)
	if cause := podvm.Cause(err); cause != "" {
		text += ": " + cause
	}
	answer(c.w, http.StatusInternalServerError, text+" (request "+id+")")
}

func (c *call) octets(body []byte) { send(c.w, "application/octet-stream", body) }
func (c *call) json(body []byte)   { send(c.w, "application/json", body) }

// send answers 200.
func send(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body) // the container went away: nobody is left to tell
}

// answer sends a text without a Content-Type, as upstream does.
func answer(w http.ResponseWriter, status int, text string) {
	w.Header()["Content-Type"] = nil // keeps net/http from guessing
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text)) // as in send
}

// newID returns 8 hex digits, as package rpc does for its calls.
func newID() string {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	return hex.EncodeToString(b[:])
}
