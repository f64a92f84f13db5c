package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	aa "github.com/sealpod/sealpod/api/attestationagent"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

const image = "registry.example/app:1"

func TestPulledImageIsMeasured(t *testing.T) {
	w := newWorld(t)
	p := &puller{}
	w.usePuller(p)
	got, st := w.pull(image, "/bundle")
	if got != digest {
		t.Fatal(st)
	}
	if len(w.aa.Events) != 1 {
		t.Fatalf("%d events, want 1", len(w.aa.Events))
	}
	e := w.aa.Events[0]
	if e.Domain != "github.com/confidential-containers" || e.Operation != "PullImage" || e.RegisterIndex != nil ||
		e.Content != `{"image":"registry.example/app:1", "digest":"`+digest+`"}` {
		t.Errorf("event %+v", e)
	}
}

func TestMeasuredContentCannotBeForged(t *testing.T) {
	got, err := measuredContent("a\",\"digest\":\"b\n<&>", "d")
	if want := `{"image":"a\",\"digest\":\"b\n<&>", "digest":"d"}`; err != nil || got != want {
		t.Fatalf("%s, %v, want %s", got, err, want)
	}
}

func TestMeasurementOutcomes(t *testing.T) {
	tests := map[string]struct {
		extend  func() (aa.RuntimeMeasurementResult, error)
		fault   string
		removed int
	}{
		"not supported is a warning": {extend: func() (aa.RuntimeMeasurementResult, error) { return aa.RuntimeMeasurementResult_NOT_SUPPORTED, nil }},
		"not enabled is a warning":   {extend: func() (aa.RuntimeMeasurementResult, error) { return aa.RuntimeMeasurementResult_NOT_ENABLED, nil }},
		"an error takes the image back": {
			extend: func() (aa.RuntimeMeasurementResult, error) { return 0, status.Error(codes.Internal, "x") },
			fault:  textMeasure + ": the image could not be measured", removed: 1,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := &puller{}
			w.usePuller(p)
			w.aa.Lock(func() { w.aa.ExtendFunc = tt.extend })
			got, st := w.pull(image, "/bundle")
			if tt.fault != "" {
				wantFault(t, st, tt.fault)
			} else if got != digest {
				t.Fatal(st)
			}
			if len(p.removed) != tt.removed {
				t.Errorf("%d bundles removed, want %d", len(p.removed), tt.removed)
			}
		})
	}
}

func TestAgentSocketIsLookedUpForEachPull(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.AA.Socket = "unix://" + filepath.Join(t.TempDir(), "later.sock") })
	w.usePuller(&puller{})
	later := cdhtest.NewAA(t, w.kbs)
	later.Path = w.hub.aaPath
	if got, st := w.pull(image, "/one"); got != digest || len(later.Events) != 0 {
		t.Fatal(st)
	}
	later.Start(t)
	if got, st := w.pull(image, "/two"); got != digest || len(later.Events) != 1 {
		t.Fatalf("%v, %d events", st, len(later.Events))
	}
}

// An agent that was there is waited for, so that nobody gets an image by
// unmeasured who can make the agent start again.
func TestNoImageGetsByWhileTheAgentIsAway(t *testing.T) {
	w := newWorld(t)
	w.usePuller(&puller{})
	w.aa.Stop()
	if _, err := os.Stat(w.aa.Path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("the agent left its socket: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := w.hub.measure(ctx, image, digest); !errors.Is(err, rpc.ErrPeerAbsent) || !strings.Contains(podvm.Cause(err), "not reachable at "+w.aa.Path) {
		t.Errorf("got %v", err)
	}
	pulled := make(chan *status.Status)
	go func() {
		_, st := w.pull(image, "/bundle")
		pulled <- st
	}()
	w.aa.Start(t)
	if st := <-pulled; st.Code() != codes.OK || len(w.aa.Events) != 1 {
		t.Errorf("%v, %d events", st, len(w.aa.Events))
	}
}

func TestPullErrors(t *testing.T) {
	tests := map[string]struct {
		err, clientErr error
		fault          string
	}{
		"with a cause": {
			err:   podvm.Explain(errors.New("inner"), "Failed to pull image "+image+": Not authorized"),
			fault: textPull + ": Failed to pull image " + image + ": Not authorized",
		},
		"without one":   {err: errors.New("inner detail"), fault: textPull + ": the image could not be pulled"},
		"client fault":  {clientErr: imagepull.ErrConfig, fault: textClient + ": the [image] configuration is not usable"},
		"hostile cause": {err: podvm.Explain(errors.New("x"), "a\x1b[1m\nb"), fault: textPull + ": a [1m\nb"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.hub.newPuller = func() (Puller, error) {
				if tt.clientErr != nil {
					return nil, tt.clientErr
				}
				return &puller{err: tt.err}, nil
			}
			_, st := w.pull(image, "/bundle")
			wantFault(t, st, tt.fault)
			if len(w.aa.Events) != 0 {
				t.Error("an image that is not there was measured")
			}
		})
	}
}

func TestClientFailureIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	calls := 0
	w.hub.newPuller = func() (Puller, error) {
		if calls++; calls == 1 {
			return nil, errors.New("store not mounted yet")
		}
		return &puller{}, nil
	}
	if _, st := w.pull(image, "/b"); st.Code() != codes.Internal {
		t.Fatal(st)
	}
	for range 3 {
		if got, st := w.pull(image, "/b"); got != digest {
			t.Fatal(st)
		}
	}
	if calls != 2 {
		t.Errorf("the client was built %d times, want 2", calls)
	}
}

func TestPullsRunSideBySide(t *testing.T) {
	w := newWorld(t)
	p := &puller{hold: make(chan struct{}), entered: make(chan struct{})}
	w.usePuller(p)
	done := make(chan *status.Status)
	for _, b := range []string{"/a", "/b", "/c"} {
		go func() { _, st := w.pull(image, b); done <- st }()
	}
	for range 3 {
		<-p.entered // all three are in at once
	}
	close(p.hold)
	for range 3 {
		if st := <-done; st.Code() != codes.OK {
			t.Error(st)
		}
	}
}

func TestRealPullerRefusesABadReferenceInUpstreamsWords(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Image = imagepull.DefaultConfig(); c.Image.WorkDir = t.TempDir() })
	_, st := w.pull("UPPER case:::", t.TempDir())
	if st.Code() != codes.Internal || !strings.HasPrefix(st.Message(), textPull+": Failed to pull image") {
		t.Fatal(st)
	}
}
