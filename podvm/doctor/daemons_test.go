package doctor

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	aaserver "github.com/sealpod/sealpod/attester/server"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/podvm/metrics"
	"github.com/sealpod/sealpod/podvm/rpc"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// serve runs servers on a socket, and its metrics beside it, until the test ends.
func serve(t *testing.T, socket string, register func(*ttrpc.Server), status func() any) {
	t.Helper()
	l, err := rpc.Listen(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.DiscardHandler)
	m := metrics.Listen(t.Context(), "", socket, metrics.New("sealpod"), status, log)
	ctx, stop := context.WithCancel(context.Background())
	served, watched := make(chan error, 1), make(chan struct{})
	go func() { served <- rpc.Serve(ctx, l, log, register) }()
	go func() { defer close(watched); m.Serve(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
		<-watched
	})
}

// runAgent runs a real attestation agent.
func (d *doctor) runAgent(t *testing.T, init string) {
	t.Helper()
	c, _, err := d.agentConfig()
	if err != nil {
		t.Fatal(err)
	}
	a := aaserver.New(aaserver.Deps{Config: c, TEEs: &attester.Set{Primary: sample.New()}, Log: d.log, InitData: aaserver.InitData{Digest: []byte(init)}})
	t.Cleanup(a.Close)
	serve(t, d.AgentSocket, a.Register, func() any { return a.Status() })
}

// newKBS takes every evidence, after a while, or none.
func newKBS(t *testing.T, takes bool) *httptest.Server {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	jwt := strings.Join([]string{encode([]byte(`{"alg":"ES256"}`)), encode([]byte(`{"exp":4000000000}`)), encode([]byte("x"))}, ".")
	mux := http.NewServeMux()
	mux.HandleFunc("POST /kbs/v0/auth", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"nonce":"bm9uY2U=","extra-params":""}`)
	})
	mux.HandleFunc("POST /kbs/v0/attest", func(w http.ResponseWriter, _ *http.Request) {
		if !takes {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"token":"`+jwt+`"}`)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

func TestKBS(t *testing.T) {
	d := machine(t, nil, map[string]string{"aa.toml": kbsAt(newKBS(t, true).URL)})
	d.runAgent(t, "")
	var r Report
	d.kbs(t.Context(), &r)
	r.wants(t, map[Status][]string{OK: {"answers with a challenge in ", "ago, took "}})
	for _, step := range []string{"connect", "challenge", "attestation agent: challenge", "attestation agent: evidence", "attestation agent: attestation"} {
		if r.Seconds[step] <= 0 {
			t.Errorf("no time of %q in %v", step, r.Seconds)
		}
	}
	// A TEE that is none is told.
	r = Report{}
	d.tee(t.Context(), &r)
	r.wants(t, map[Status][]string{Warning: {"no TEE: evidence of type sample"}})
}

func TestKBSThatIsNotUsable(t *testing.T) {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	closed := httptest.NewServer(http.NotFoundHandler())
	closed.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	private := httptest.NewTLSServer(http.NotFoundHandler())
	defer private.Close()
	for name, c := range map[string]struct {
		url, want string
		agent     bool
	}{
		"it refuses the evidence":  {newKBS(t, false).URL, "no token through the attestation agent: ", true},
		"there is no agent":        {newKBS(t, true).URL, "no token through the attestation agent: no socket", false},
		"nobody listens":           {closed.URL, closed.URL + ": ", false},
		"it never answers":         {"http://" + silent.Addr().String(), "answer", false},
		"it is another server":     {other.URL, other.URL + ": ", false},
		"its certificate is wrong": {private.URL, "certificate", false},
	} {
		t.Run(name, func(t *testing.T) {
			d := machine(t, nil, map[string]string{"aa.toml": kbsAt(c.url)})
			if c.agent {
				d.runAgent(t, "")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			var r Report
			d.kbs(ctx, &r)
			if got := find(&r, Failed); !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
	var r Report
	machine(t, nil, map[string]string{}).kbs(t.Context(), &r)
	r.wants(t, map[Status][]string{Skipped: {"no relying party is configured"}})
}

// kata answers as kata-agent does.
type kata struct{ err error }

func (k kata) Check(context.Context, *agent.CheckRequest) (*agent.HealthCheckResponse, error) {
	return &agent.HealthCheckResponse{}, k.err
}

func (k kata) Version(context.Context, *agent.CheckRequest) (*agent.VersionCheckResponse, error) {
	return &agent.VersionCheckResponse{}, k.err
}

func TestSockets(t *testing.T) {
	d := machine(t, nil, map[string]string{})
	var r Report
	d.sockets(t.Context(), &r)
	r.wants(t, map[Status][]string{
		Failed:  {"attestation-agent does not answer at " + d.AgentSocket + ": no socket", "confidential-data-hub does not answer"},
		Skipped: {"api-server-rest is not", "kata-agent is not", "forwarder is not"},
	})

	d = machine(t, nil, map[string]string{"apf.json": "{}"})
	port, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer port.Close()
	rest := httptest.NewServer(http.NotFoundHandler())
	defer rest.Close()
	d.REST = rest.Listener.Addr().String()
	d.ForwarderMetrics = metrics.Socket(d.HubSocket) // somebody's
	none := func(*ttrpc.Server) {}
	d.runAgent(t, "")
	serve(t, d.HubSocket, none, func() any { return forwarder.Status{Listen: "0.0.0.0:" + fmt.Sprint(port.Addr().(*net.TCPAddr).Port)} })
	serve(t, d.KataSocket, func(s *ttrpc.Server) { agent.RegisterHealthService(s, kata{}) }, nil)
	r = Report{}
	d.sockets(t.Context(), &r)
	r.wants(t, map[Status][]string{OK: {"attestation-agent answers at", "confidential-data-hub answers", "api-server-rest answers", "kata-agent answers", "forwarder answers"}})
	if len(r.Seconds) != 5 {
		t.Errorf("%v", r.Seconds)
	}

	// A socket is there, and nobody behind it; a port is open, and says nothing.
	port.Close()
	rest.Close()
	hung, err := net.Listen("unix", d.KataSocket+"2")
	if err != nil {
		t.Fatal(err)
	}
	defer hung.Close()
	d.KataSocket += "2"
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	r = Report{}
	d.sockets(ctx, &r)
	r.wants(t, map[Status][]string{
		OK:     {"attestation-agent", "confidential-data-hub"},
		Failed: {"api-server-rest does not answer at " + d.REST + ": nobody listens", "kata-agent does not answer at " + d.KataSocket + ": no answer in time", "forwarder does not answer"},
	})
}

func TestKataAgentThatRefuses(t *testing.T) {
	d := machine(t, nil, map[string]string{})
	serve(t, d.KataSocket, func(s *ttrpc.Server) { agent.RegisterHealthService(s, kata{errors.New("not now")}) }, nil)
	var r Report
	d.sockets(t.Context(), &r)
	if got := find(&r, Failed); !strings.Contains(got, "kata-agent does not answer") || !strings.Contains(got, "not now") {
		t.Error(got)
	}
}

// What the agent's evidence vouches for is compared with the files.
func TestInitDataOfTheAgent(t *testing.T) {
	for name, c := range map[string]struct {
		bound string
		want  Status
		text  string
	}{
		"the same": {"same", OK, "the evidence of sample vouches for it"},
		"other":    {"other", Failed, "vouches for other init data: 6f74686572"},
		"none":     {"", Warning, "no evidence vouches"},
	} {
		t.Run(name, func(t *testing.T) {
			d, digest := withInitData(t)
			if c.bound == "same" {
				c.bound = digest
			}
			d.runAgent(t, c.bound)
			var r Report
			d.initdata(t.Context(), &r)
			if got := find(&r, c.want); !strings.Contains(got, c.text) {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
}

func TestNetNS(t *testing.T) {
	d := machine(t, nil, map[string]string{})
	var r Report
	d.netns(t.Context(), &r)
	r.wants(t, map[Status][]string{Skipped: {"there is no "}})

	const network = `{"pod-network":{"podip":"10.1.2.3/24","interface":"eth0","worker-node-ip":"10.0.0.1/24","tunnel-type":"vxlan"}}`
	d = machine(t, nil, map[string]string{"apf.json": network})
	r = Report{}
	d.netns(t.Context(), &r)
	r.wants(t, map[Status][]string{Failed: {"no such file"}})
	if err := os.WriteFile(d.Namespace, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r = Report{}
	d.netns(t.Context(), &r)
	r.wants(t, map[Status][]string{Failed: {"is a file, not a network namespace"}})

	testenv.Root(t)
	ip := testenv.Tool(t, "ip")
	name := "sealpod-doctor-test"
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(ip, args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v %s", args, err, out)
		}
	}
	run("netns", "add", name)
	t.Cleanup(func() { _ = exec.Command(ip, "netns", "delete", name).Run() })
	d.Namespace = "/run/netns/" + name
	look := func(want map[Status][]string) {
		t.Helper()
		var r Report
		d.netns(t.Context(), &r)
		r.wants(t, want)
	}
	look(map[Status][]string{Failed: {"loopback device of the pod is down", "lacks its address 10.1.2.3/24; it has none"}})
	run("-n", name, "link", "set", "lo", "up")
	run("-n", name, "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
	run("-n", name, "address", "add", "10.1.2.3/24", "dev", "eth0")
	look(map[Status][]string{Failed: {"lacks its address"}}) // it is down
	run("-n", name, "link", "set", "eth0", "up")
	look(map[Status][]string{Warning: {"10.1.2.3/24"}})
	run("-n", name, "route", "add", "default", "via", "10.1.2.1")
	look(map[Status][]string{OK: {"10.1.2.3/24"}})
	if err := os.WriteFile(d.ForwarderConfig, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	look(map[Status][]string{Warning: {"which it should have is not known"}})

	// The REST server is asked in the namespace: its address is somebody else's here.
	var l net.Listener
	err := d.inPod(func() (err error) {
		l, err = net.Listen("tcp", "127.0.0.1:0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.NotFoundHandler()}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	defer func() { srv.Close(); <-served }()
	d.REST = l.Addr().String()
	if err := d.inPod(func() error { return d.askREST(t.Context()) }); err != nil {
		t.Error(err)
	}
	if err := d.askREST(t.Context()); err == nil || why(err) != "nobody listens" {
		t.Error(err)
	}
}
