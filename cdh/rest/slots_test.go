package rest

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/ttrpc"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
)

// slowAgent makes no evidence before it is released.
type slowAgent struct {
	*cdhtest.AA
	entered, release chan struct{}
}

func (a slowAgent) GetEvidence(ctx context.Context, _ *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	a.entered <- struct{}{}
	select {
	case <-a.release:
		return &aa.GetEvidenceResponse{Evidence: []byte("{}")}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A container that asks for evidence as often as it can, which takes seconds
// each on some machines, keeps others from nothing else.
func TestEvidenceDoesNotHoldUpOtherRequests(t *testing.T) {
	const asked = 2 * maxRequests
	agent := slowAgent{cdhtest.NewAA(t, cdhtest.NewKBS(t)), make(chan struct{}, asked), make(chan struct{})}
	path := filepath.Join(t.TempDir(), "slow.sock")
	stop := cdhtest.Serve(t, path, func(s *ttrpc.Server) { aa.RegisterAttestationAgentServiceService(s, agent) })
	defer stop()
	w := &world{hub: &hub{path: filepath.Join(t.TempDir(), "cdh.sock")}}
	w.hub.start(t)
	w.serve(t, Config{Features: "all", CDHAddr: "unix://" + w.hub.path, AAAddr: "unix://" + path})
	var all sync.WaitGroup
	for i := range asked {
		all.Go(func() {
			if code, _, text := w.raw(t, "GET", fmt.Sprintf("/aa/evidence?runtime_data=%d", i), ""); code != 200 {
				t.Errorf("evidence: %d %q", code, text)
			}
		})
	}
	for range maxSlow {
		<-agent.entered
	}
	for range maxRequests {
		for _, target := range []string{"/cdh/resource/a/b/c", "/aa/token?token_type=kbs", "/info"} {
			if code, _, text := w.raw(t, "GET", target, ""); code != 200 {
				t.Errorf("%s: %d %q", target, code, text)
			}
		}
	}
	if n := len(agent.entered); n != 0 {
		t.Errorf("%d more are asked for at once", n)
	}
	close(agent.release)
	all.Wait()
}

// A container that asks and hangs up, again and again, is not to fill the agent
// with calls that nobody waits for.
func TestHangingUpEndsTheCallAtTheAgent(t *testing.T) {
	agent := slowAgent{cdhtest.NewAA(t, cdhtest.NewKBS(t)), make(chan struct{}, 1), make(chan struct{})}
	ended := make(chan struct{}, 1)
	path := filepath.Join(t.TempDir(), "slow.sock")
	stop := cdhtest.Serve(t, path, func(s *ttrpc.Server) {
		aa.RegisterAttestationAgentServiceService(s, endingAgent{agent, ended})
	})
	defer stop()
	w := &world{}
	w.serve(t, Config{Features: "attestation", AAAddr: "unix://" + path})
	for range 2 * maxSlow {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /aa/evidence?runtime_data=x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-agent.entered
		c.Close()
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			t.Fatal("the agent goes on")
		}
	}
}

// endingAgent tells when a call has ended.
type endingAgent struct {
	slowAgent
	ended chan struct{}
}

func (a endingAgent) GetEvidence(ctx context.Context, r *aa.GetEvidenceRequest) (*aa.GetEvidenceResponse, error) {
	defer func() { a.ended <- struct{}{} }()
	return a.slowAgent.GetEvidence(ctx, r)
}

// Who hangs up leaves its place to the next.
func TestHangingUpGivesTheSlotBack(t *testing.T) {
	agent := slowAgent{cdhtest.NewAA(t, cdhtest.NewKBS(t)), make(chan struct{}, 2*maxSlow), make(chan struct{})}
	path := filepath.Join(t.TempDir(), "slow.sock")
	stop := cdhtest.Serve(t, path, func(s *ttrpc.Server) { aa.RegisterAttestationAgentServiceService(s, agent) })
	defer stop()
	w := &world{}
	w.serve(t, Config{Features: "attestation", AAAddr: "unix://" + path})
	var held []net.Conn
	for range maxSlow {
		c, err := net.Dial("tcp", w.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(c, "GET /aa/evidence?runtime_data=x HTTP/1.1\r\nHost: x\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
		<-agent.entered
	}
	next := make(chan int, 1)
	go func() {
		code, _, _ := w.raw(t, "GET", "/aa/evidence?runtime_data=x", "")
		next <- code
	}()
	for _, c := range held {
		c.Close()
	}
	<-agent.entered
	close(agent.release)
	if code := <-next; code != 200 {
		t.Error(code)
	}
}

func TestRequestsWaitForAPlaceOnlySoLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, err := New(Config{Features: "resource", CDHAddr: "unix:///none"})
		if err != nil {
			t.Fatal(err)
		}
		defer h.Close()
		for range maxRequests {
			h.slots <- struct{}{}
		}
		began := time.Now()
		r, w := httptest.NewRequest("GET", "/info", nil), httptest.NewRecorder()
		r.RemoteAddr = "127.0.0.1:1"
		h.ServeHTTP(w, r)
		if w.Code != 500 || w.Body.String() != "too many requests at once" || time.Since(began) != slotWait {
			t.Errorf("%d %q after %v", w.Code, w.Body, time.Since(began))
		}
	})
}
