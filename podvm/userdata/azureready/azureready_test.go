package azureready

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Answers as the WireServer gives them.
const (
	versionsText = `<?xml version="1.0" encoding="utf-8"?>
<Versions>
  <Preferred><Version>2015-04-05</Version></Preferred>
  <Supported><Version>2015-04-05</Version><Version>2012-11-30</Version></Supported>
</Versions>`
	goalText = `<?xml version="1.0" encoding="utf-8"?>
<GoalState xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:noNamespaceSchemaLocation="goalstate10.xsd">
  <Version>2012-11-30</Version>
  <Incarnation>3</Incarnation>
  <Machine><ExpectedState>Started</ExpectedState></Machine>
  <Container>
    <ContainerId>c6d5526c-5ac2</ContainerId>
    <RoleInstanceList>
      <RoleInstance><InstanceId>b61f93d0.&lt;MachineRole&gt;_IN_0</InstanceId><State>Started</State></RoleInstance>
    </RoleInstanceList>
  </Container>
</GoalState>`
	healthText = `<?xml version="1.0" encoding="utf-8"?>
<Health>
  <GoalStateIncarnation>3</GoalStateIncarnation>
  <Container>
    <ContainerId>c6d5526c-5ac2</ContainerId>
    <RoleInstanceList>
      <Role>
        <InstanceId>b61f93d0.&lt;MachineRole&gt;_IN_0</InstanceId>
        <Health>
          <State>Ready</State>
        </Health>
      </Role>
    </RoleInstanceList>
  </Container>
</Health>`
)

const (
	versionsLine = "GET /?comp=versions"
	goalLine     = "GET /machine/?comp=goalstate"
	healthLine   = "POST /machine?comp=health"
)

// wireServer is a WireServer whose answers a test may replace.
type wireServer struct {
	*httptest.Server
	answers map[string]http.HandlerFunc

	one   sync.Mutex
	asked []string
}

func text(s string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, s) }
}

func newWireServer(t *testing.T, version string) *wireServer {
	t.Helper()
	s := &wireServer{}
	s.answers = map[string]http.HandlerFunc{
		versionsLine: text(versionsText), goalLine: text(goalText),
		healthLine: func(_ http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil || string(body) != healthText {
				t.Errorf("a health report %s, %v", body, err)
			}
			if ct := r.Header.Get("Content-Type"); ct != "text/xml; charset=utf-8" {
				t.Errorf("content type %q", ct)
			}
		},
	}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		line := r.Method + " " + r.URL.String()
		s.one.Lock()
		s.asked = append(s.asked, line)
		s.one.Unlock()
		want := version
		if line == versionsLine {
			want = ""
		}
		if r.Header.Get("x-ms-agent-name") != "azure-ready" || r.Header.Get("x-ms-version") != want {
			t.Errorf("%s with %v", line, r.Header)
		}
		answer, ok := s.answers[line]
		if !ok {
			http.NotFound(w, r)
			return
		}
		answer(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *wireServer) report(ctx context.Context, timeout time.Duration) error {
	return Report(ctx, Config{Endpoint: s.URL + "/", Timeout: timeout, Log: slog.New(slog.DiscardHandler)})
}

func TestReport(t *testing.T) {
	s := newWireServer(t, preferred)
	if err := s.report(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if want := []string{versionsLine, goalLine, healthLine}; !slices.Equal(s.asked, want) {
		t.Errorf("asked %q", s.asked)
	}
}

func TestReportWithAnotherVersion(t *testing.T) {
	s := newWireServer(t, "2012-11-30")
	s.answers[versionsLine] = text("<Versions><Supported><Version>2012-11-30</Version><Version>2011-01-01</Version></Supported></Versions>")
	if err := s.report(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// Each request fails in each way, once: there is no second try.
func TestReportFails(t *testing.T) {
	faults := map[string]struct {
		answer http.HandlerFunc
		says   string
	}{
		"500":      {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "busy\x1b[2J", 500) }, "500 Internal Server Error: busy [2J"},
		"404":      {http.NotFound, "404"},
		"redirect": {func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/other", http.StatusFound) }, "302"},
		"broken":   {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "connection broke"},
		"hangs": {func(_ http.ResponseWriter, r *http.Request) {
			// The server notices that the client is gone once it has the body.
			_, _ = io.Copy(io.Discard, r.Body)
			<-r.Context().Done()
		}, "no answer in time"},
		"endless": {func(w http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil {
				if _, err := w.Write(make([]byte, 1<<16)); err != nil {
					return
				}
			}
		}, "too large"},
	}
	for i, line := range []string{versionsLine, goalLine, healthLine} {
		for name, fault := range faults {
			t.Run(line+" "+name, func(t *testing.T) {
				s := newWireServer(t, preferred)
				s.answers[line] = fault.answer
				timeout := time.Duration(0)
				if name == "hangs" {
					timeout = 100 * time.Millisecond
				}
				err := s.report(t.Context(), timeout)
				if !errors.Is(err, ErrWireServer) || !strings.Contains(err.Error(), fault.says) {
					t.Errorf("got %v", err)
				}
				s.one.Lock()
				defer s.one.Unlock()
				if len(s.asked) != i+1 {
					t.Errorf("asked %q", s.asked)
				}
			})
		}
	}
}

func TestReportIsCalledOff(t *testing.T) {
	s := newWireServer(t, preferred)
	ctx, cancel := context.WithCancel(t.Context())
	s.answers[goalLine] = func(_ http.ResponseWriter, r *http.Request) { cancel(); <-r.Context().Done() }
	if err := s.report(ctx, 0); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestReportWithoutServer(t *testing.T) {
	s := newWireServer(t, preferred)
	s.Close()
	if err := s.report(t.Context(), 0); !errors.Is(err, ErrWireServer) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("got %v", err)
	}
	for _, endpoint := range []string{"168.63.129.16", "ftp://host", "http://", "http://a b"} {
		if err := Report(t.Context(), Config{Endpoint: endpoint}); err == nil || !strings.Contains(err.Error(), "is not http(s)://HOST") {
			t.Errorf("%s: %v", endpoint, err)
		}
	}
}

// entityBomb defines entities that stand for 10^9 words.
func entityBomb(in string) string {
	var b strings.Builder
	b.WriteString("<!DOCTYPE x [<!ENTITY a0 \"hunter2\">")
	for i := range 9 {
		fmt.Fprintf(&b, "<!ENTITY a%d \"%s\">", i+1, strings.Repeat(fmt.Sprintf("&a%d;", i), 10))
	}
	return b.String() + "]>" + strings.ReplaceAll(in, "3", "&a9;")
}

func TestParseGoalStateRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"nothing":            "",
		"not XML":            "{}",
		"HTML":               "<html></html>",
		"cut":                goalText[:400],
		"no incarnation":     strings.Replace(goalText, "<Incarnation>3</Incarnation>", "", 1),
		"no container":       strings.Replace(goalText, "c6d5526c-5ac2", "", 1),
		"no instance":        strings.Replace(goalText, "RoleInstance>", "Other>", 2),
		"long incarnation":   strings.Replace(goalText, "<Incarnation>3", "<Incarnation>"+strings.Repeat("3", 257), 1),
		"entity bomb":        entityBomb(goalText),
		"external entity":    `<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>` + strings.Replace(goalText, ">3<", ">&f;<", 1),
		"deep":               strings.Repeat("<GoalState>", maxAnswer/11),
		"another encoding":   strings.Replace(goalText, "utf-8", "utf-7", 1),
		"not in the element": strings.Replace(goalText, "<Container>", "<Container/><Other>", 1),
	} {
		if g, err := parseGoalState([]byte(in)); !errors.Is(err, ErrWireServer) || g != (goalState{}) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %+v, %v", name, g, err)
		}
	}
}

func TestChooseVersionRefuses(t *testing.T) {
	for name, in := range map[string]string{
		"none":        "<Versions><Supported></Supported></Versions>",
		"empty":       "<Versions><Supported><Version/></Supported></Versions>",
		"two lines":   "<Versions><Supported><Version>1&#13;&#10;Host: x</Version></Supported></Versions>",
		"long":        "<Versions><Supported><Version>" + strings.Repeat("1", 33) + "</Version></Supported></Versions>",
		"other root":  "<Supported><Version>2015-04-05</Version></Supported>",
		"only wished": "<Versions><Preferred><Version>2015-04-05</Version></Preferred></Versions>",
	} {
		if v, err := chooseVersion([]byte(in)); !errors.Is(err, ErrWireServer) || v != "" {
			t.Errorf("%s: %q, %v", name, v, err)
		}
	}
}

func FuzzGoalState(f *testing.F) {
	f.Add([]byte(goalText))
	f.Add([]byte(entityBomb(goalText)))
	f.Add([]byte(versionsText))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if v, err := chooseVersion(raw); err == nil && (v == "" || podvm.Printable(v, 32) != v) {
			t.Fatalf("version %q", v)
		}
		g, err := parseGoalState(raw)
		if err != nil {
			return
		}
		report, err := healthReport(g)
		if err != nil {
			t.Fatal(err)
		}
		// No text of a goal state becomes an element of the report.
		if n := strings.Count(string(report), "<"); n != strings.Count(healthText, "<") {
			t.Fatalf("%d tags in %s", n, report)
		}
	})
}
