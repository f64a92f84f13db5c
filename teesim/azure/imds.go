package azure

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

const (
	// maxQuoteRequest bounds the body of a request for a quote in bytes: 1024 of
	// a report are 1368 in base64.
	maxQuoteRequest = 4096
	// maxIMDSClients is how many connections there are at once.
	maxIMDSClients = 64
)

// imds is the instance metadata service of the VM.
type imds struct {
	server *http.Server
	url    string
	done   chan struct{}
}

func startIMDS(ctx context.Context, h Hardware, log *slog.Logger) (*imds, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("starting the metadata service: %w", err)
	}
	s := &imds{url: "http://" + l.Addr().String(), done: make(chan struct{}), server: &http.Server{
		Handler:        imdsHandler(h, log),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   30 * time.Second,
		IdleTimeout:    5 * time.Second,
		MaxHeaderBytes: 16 << 10,
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() {
		defer close(s.done)
		if err := s.server.Serve(netutil.LimitListener(l, maxIMDSClients)); !errors.Is(err, http.ErrServerClosed) {
			log.Error("The metadata service ended", "err", err)
		}
	}()
	return s, nil
}

// Close ends the service. Requests that are being answered are cut off.
func (s *imds) Close() error {
	err := s.server.Close()
	<-s.done
	return err
}

// imdsHandler serves what there is for that hardware. Like the real service it
// refuses requests without the header "Metadata: true", and those that came
// through a proxy. Source: Azure Instance Metadata Service, "Security and
// authentication"; paths from az-cvm-vtpm 0.8.1, src/imds.rs of its crates.
func imdsHandler(h Hardware, log *slog.Logger) http.Handler {
	routes := map[string]http.HandlerFunc{}
	if h.Quote != nil {
		routes["POST /acc/tdquote"] = func(w http.ResponseWriter, r *http.Request) { quote(w, r, h, log) }
	}
	if h.Certification != nil {
		routes["GET /metadata/THIM/amd/certification"] = func(w http.ResponseWriter, _ *http.Request) { certify(w, h, log) }
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		route := routes[r.Method+" "+r.URL.Path]
		_, proxied := r.Header["X-Forwarded-For"]
		switch {
		case r.Header.Get("Metadata") != "true":
			fail(w, http.StatusBadRequest, "the header Metadata must be true")
		case proxied:
			fail(w, http.StatusBadRequest, "requests through a proxy are refused")
		case route == nil:
			fail(w, http.StatusNotFound, "not found")
		default:
			route(w, r)
		}
	})
}

func certify(w http.ResponseWriter, h Hardware, log *slog.Logger) {
	c, err := h.Certification()
	if err != nil {
		log.Warn("Getting the chip's certificates", "err", err)
		fail(w, http.StatusInternalServerError, "no certificates")
		return
	}
	answer(w, http.StatusOK, c)
}

// quote answers a request for a quote of a TD report. It takes both alphabets of
// base64, as clients send both, and answers in the one of the real service,
// which is URL-safe without padding.
func quote(w http.ResponseWriter, r *http.Request, h Hardware, log *slog.Logger) {
	var request struct {
		Report string `json:"report"`
	}
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuoteRequest)).Decode(&request); err != nil {
		fail(w, http.StatusBadRequest, "the body must be a JSON object with a report")
		return
	}
	report, err := base64.StdEncoding.DecodeString(request.Report)
	if err != nil {
		report, err = base64.RawURLEncoding.DecodeString(request.Report)
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "the report must be base64")
		return
	}
	signed, err := h.Quote(report)
	if err != nil {
		log.Warn("Refusing a quote", "err", err)
		fail(w, http.StatusBadRequest, "not a report of this machine")
		return
	}
	answer(w, http.StatusOK, map[string]string{"quote": base64.RawURLEncoding.EncodeToString(signed)})
}

func fail(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"error": text})
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the client may be gone
}
