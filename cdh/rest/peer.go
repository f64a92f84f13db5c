package rest

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// peer is the data hub or the attestation agent, by the name upstream has for
// it in error texts.
type peer struct {
	name, addr string
	client     *rpc.Client
}

func newPeer(name, addr string, wait time.Duration) (*peer, error) {
	path, err := rpc.SocketPath(addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &peer{name: name, addr: addr, client: rpc.NewClient(path, wait)}, nil
}

func (p *peer) close() error {
	if p == nil {
		return nil
	}
	return p.client.Close()
}

// peerError is a call that did not work.
type peerError struct {
	text    string // upstream's outermost text
	request string // the peer's id of the request, "" if it gave none
	word    string // why, as package rpc has words for it, or ""
	err     error
}

func (e *peerError) Error() string { return e.text + ": " + e.err.Error() }
func (e *peerError) Unwrap() error { return e.err }

// do makes one call, which runs again when the peer closed the connection.
func (p *peer) do(ctx context.Context, call func(context.Context, *ttrpc.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	tries := 0
	err := p.client.Do(ctx, func(c *ttrpc.Client) error {
		tries++
		return call(ctx, c)
	})
	if err == nil {
		return nil
	}
	e := &peerError{text: "ttrpc request error"}
	absent := errors.Is(err, rpc.ErrPeerAbsent)
	switch {
	case absent && tries == 0:
		e.text = "ttrpc connect to " + p.name + " addr: " + p.addr + " failed"
	case absent:
		e.text = "failed to reconnect to " + p.name + " after LocalClosed"
	case tries > 1:
		e.text = "ttrpc request error after reconnect"
	}
	var cause string
	cause, e.request = reason(err)
	if e.word = rpc.Reason(err); e.word == "" && noAnswer(err) {
		e.word = rpc.Unreachable
	}
	e.err = podvm.Explain(err, cause)
	return e
}

// noAnswer tells whether the peer did not get to answer.
func noAnswer(err error) bool {
	return errors.Is(err, rpc.ErrPeerAbsent) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ttrpc.ErrClosed) ||
		status.Code(err) == codes.DeadlineExceeded
}

// maxCause cuts, in bytes, what a container is told: as much as our daemons tell.
const maxCause = 2048

// Parts of a status text of our daemons and of upstream's.
var (
	statusPrefix = regexp.MustCompile(`^\[(?:CDH|ERROR:attestation-agent)\] (?:\[ERROR\]: )?`)
	statusID     = regexp.MustCompile(` \(request ([0-9a-f]{8})\)$`)
)

// reason takes the text of a status apart: what to tell the container, and the
// peer's request id. Where our daemons gave a cause, it alone is told; upstream's
// give none, so their own text has to do.
func reason(err error) (cause, request string) {
	switch {
	case errors.Is(err, rpc.ErrPeerAbsent):
		return "nobody listens there", ""
	case errors.Is(err, context.DeadlineExceeded), status.Code(err) == codes.DeadlineExceeded:
		return "no answer in time", ""
	case errors.Is(err, context.Canceled):
		return "the caller gave up", ""
	case errors.Is(err, ttrpc.ErrClosed):
		return "the connection broke", ""
	}
	text := status.Convert(err).Message()
	if m := statusID.FindStringSubmatch(text); m != nil {
		text, request = strings.TrimSuffix(text, m[0]), m[1]
	}
	if loc := statusPrefix.FindStringIndex(text); loc != nil {
		text = text[loc[1]:]
		// "Get Resource failed: CAUSE", with "failed" closing upstream's part.
		if _, after, ok := strings.Cut(text, "failed: "); ok {
			text = after
		}
	}
	return podvm.Printable(text, maxCause), request
}
