package forwarder

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm"
)

// run runs the program to its end.
func run(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(sealpod(t), append([]string{"agent-protocol-forwarder"}, args...)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

var banner = regexp.MustCompile(`\Aagent-protocol-forwarder version \S+\n  commit: \S+\n  go: go\S+\n\z`)

func TestCommandLine(t *testing.T) {
	for _, arg := range []string{"-version", "--version", "-version=true"} {
		if code, stdout, _ := run(t, arg); code != 0 || !banner.MatchString(stdout) {
			t.Errorf("%s: exit code %d, output %q", arg, code, stdout)
		}
	}
	for _, arg := range []string{"-h", "--help"} {
		if code, _, stderr := run(t, arg); code != 0 || !strings.Contains(stderr, "agent-protocol-forwarder -ca-cert-file ca.crt") || !strings.Contains(stderr, "-kata-agent-socket") {
			t.Errorf("%s: exit code %d, output %q", arg, code, stderr)
		}
	}
	for _, args := range [][]string{{"-nonsense"}, {"-disable-tls=perhaps"}, {"-listen"}, {"argument"}, {"-metrics", "0.0.0.0:1"}} {
		code, stdout, stderr := run(t, args...)
		if code != 1 || stdout != "" || !strings.HasPrefix(stderr, "sealpod: ") || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: exit code %d, output %q, %q", args, code, stdout, stderr)
		}
	}
}

func TestEveryStartPrintsTheVersion(t *testing.T) {
	code, stdout, stderr := run(t, "-config", "/nonexistent/apf.json")
	if code != 1 || !banner.MatchString(stdout) || !strings.Contains(stderr, "sealpod: failed to open /nonexistent/apf.json: ") {
		t.Errorf("exit code %d, output %q, %q", code, stdout, stderr)
	}
}

// fails starts a forwarder that must fail with text and leave nothing.
func (l *lab) fails(t *testing.T, text string, args ...string) {
	t.Helper()
	before := l.states(t)
	p := l.launch(t, args...)
	if code := p.code(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if !regexp.MustCompile(`(?m)^sealpod: .*` + text).MatchString(p.text()) {
		t.Errorf("no %q in\n%s", text, p.text())
	}
	l.unchanged(t, before)
	if err := os.Remove(p.log); err != nil {
		t.Error(err)
	}
}

func TestWhatCannotBeSetUpLeavesNothing(t *testing.T) {
	l := newLab(t)
	network := func(change func(map[string]any)) func(map[string]any) {
		return func(m map[string]any) {
			n := podNetworkOf()
			change(n)
			m["pod-network"] = n
		}
	}
	for name, tt := range map[string]struct {
		change func(map[string]any)
		args   []string
		text   string
	}{
		"no pod network": {change: func(m map[string]any) { delete(m, "pod-network") }, text: "failed to decode .*there is no pod-network in it"},
		"unknown tunnel": {change: network(func(n map[string]any) { n["tunnel-type"] = "gre" }), text: `failed to set up pod network: .*unknown tunnel type: "gre"`},
		"unknown route device": {change: network(func(n map[string]any) {
			n["routes"] = []any{map[string]any{"dst": "10.1.0.0/16", "gw": "10.244.1.1", "dev": "eth9"}}
		}), text: "failed to set up pod network: .*eth9"},
		"unreachable gateway": {change: network(func(n map[string]any) {
			n["routes"] = []any{map[string]any{"dst": "0.0.0.0/0", "gw": "172.31.0.1", "dev": "eth0"}}
		}), text: "failed to set up pod network: "},
		"unknown protocol": {change: network(func(n map[string]any) {
			n["routes"] = []any{map[string]any{"dst": "", "gw": "10.244.1.1", "protocol": "magic"}}
		}), text: "failed to decode .*protocol"},
		"no pod namespace": {args: []string{"-pod-namespace", "/nonexistent/podns"}, text: "failed to set up pod network: .*/nonexistent/podns"},
		"host interface":   {change: network(func(n map[string]any) { n["dedicated"] = true }), args: []string{"-host-interface", "ens4"}, text: "failed to set up pod network: .*ens4 is not a dedicated interface"},
		"no pair":          {change: func(m map[string]any) { delete(m, "tls-server-key") }, text: "tls: neither Certificates, GetCertificate, nor GetConfigForClient set"},
		"TLS 1.1":          {change: func(m map[string]any) { m["tls-min-version"] = "VersionTLS11" }, text: "invalid TLS profile: "},
		"CA and skip":      {args: []string{"-tls-skip-verify"}, text: "insecure flag is not allowed"},
		"a taken port":     {args: []string{"-listen", "10.99.0.77:15150"}, text: "listening for the adaptor: "},
	} {
		t.Run(name, func(t *testing.T) {
			l.write(t, tt.change)
			l.fails(t, tt.text, tt.args...)
		})
	}
	for name, tt := range map[string]struct{ raw, text string }{
		"empty":   {"", "failed to decode .*EOF"},
		"garbage": {"\x00\x01{", "failed to decode .*invalid character"},
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(l.config(), []byte(tt.raw), 0o600); err != nil {
				t.Fatal(err)
			}
			l.fails(t, tt.text)
		})
	}
	if err := os.Remove(l.config()); err != nil {
		t.Fatal(err)
	}
	l.fails(t, "failed to open "+l.config())
}

// Weak point 6 of upstream: without a CA for clients anyone may connect.
func TestRefusesToRunWithoutClientAuthentication(t *testing.T) {
	l := newLab(t)
	l.write(t, func(m map[string]any) { delete(m, "tls-client-ca") })
	l.fails(t, "clients would not be authenticated")

	stranger := l.worker.config(t)
	stranger.GetClientCertificate = nil
	for _, flag := range []string{"-insecure-no-client-auth", "--tls-skip-verify=true", "-disable-tls"} {
		l.agentProcess(t, false)
		p := l.start(t, flag)
		c := stranger
		if flag == "-disable-tls" {
			c = nil
		}
		conn, err := l.connect(c)
		if err != nil {
			t.Fatalf("%s: %v", flag, err)
		}
		mustCheck(t, conn)
		conn.Close()
		p.stop()
		if !strings.Contains(p.text(), "whoever reaches the port owns the pod") {
			t.Errorf("%s: no warning in\n%s", flag, p.text())
		}
	}
}

func TestSignals(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	before := l.states(t)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p := l.start(t)
		c := l.adaptor(t)
		mustCheck(t, c)
		if slices.Equal(before, l.states(t)) {
			t.Error("there is no pod network")
		}
		_ = p.cmd.Process.Signal(sig)
		if code := p.code(); code != 0 {
			t.Errorf("%v: exit code %d\n%s", sig, code, p.text())
		}
		if told := l.heard(10 * time.Second); !strings.Contains(told, "STOPPING=1") {
			t.Errorf("systemd was not told of the end, but %q", told)
		}
		if err := check(c, time.Second); err == nil {
			t.Error("the connection still works")
		}
		l.unchanged(t, before)
	}
}

func TestRunningCallsAreAnsweredBeforeTheEnd(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	p := l.start(t)
	c := l.adaptor(t)
	waiting := l.waitProcess(t, c, "x", 20*time.Second)
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	until(t, "it stops accepting", func() bool {
		conn, err := l.node.dial(l.addr)
		if err == nil {
			conn.Close()
		}
		return err != nil
	})
	if _, err := agent.NewAgentServiceClient(c).SignalProcess(t.Context(), &agent.SignalProcessRequest{ContainerId: "x", Signal: 9}); err != nil {
		t.Errorf("a call that ends another: %v", err)
	}
	if err := <-waiting; err != nil {
		t.Errorf("the call that was running: %v", err)
	}
	if code := p.code(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestASignalEndsTheSetupToo(t *testing.T) {
	l := newLab(t)
	l.vm.run(t, "ip", "addr", "flush", "dev", "ens4") // the network of the VM is not up yet
	before := l.states(t)
	p := l.launch(t)
	until(t, "it waits for it", func() bool { return strings.Contains(p.text(), "Waiting for") })
	p.stop()
	l.unchanged(t, before)
}

func TestASecondSignalEndsItAtOnce(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	p := l.start(t)
	c := l.adaptor(t)
	mustCheck(t, c)
	waiting := l.waitProcess(t, c, "x", time.Minute) // keeps the first signal from taking effect at once
	_ = p.cmd.Process.Signal(syscall.SIGSTOP)        // both signals are there when it goes on
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Process.Signal(syscall.SIGINT)
	_ = p.cmd.Process.Signal(syscall.SIGCONT)
	if code := p.code(); code != 1 {
		t.Errorf("exit code %d\n%s", code, p.text())
	}
	if err := <-waiting; err == nil {
		t.Error("the call was answered")
	}
	l.start(t).stop() // what was left behind is no obstacle
}

func TestManualCertificates(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	l.worker = manualWorker(t)
	args := []string{"-ca-cert-file", l.dir + "/ca.crt", "-cert-file=" + l.dir + "/tls.crt", "--cert-key", l.dir + "/tls.key"}
	for name, raw := range map[string][]byte{"/ca.crt": l.worker.ca.cert, "/tls.crt": l.worker.server.cert, "/tls.key": l.worker.server.key} {
		if err := os.WriteFile(l.dir+name, raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.write(t, func(m map[string]any) {
		for _, k := range []string{"tls-server-cert", "tls-server-key", "tls-client-ca"} {
			delete(m, k)
		}
		m["tls-min-version"] = "VersionTLS12"
		m["tls-cipher-suites"] = []string{"TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"}
	})
	p := l.start(t, args...)
	mustCheck(t, l.adaptor(t))
	p.stop()
}

func TestAbstractSocketOfTheAgent(t *testing.T) {
	l := newLab(t)
	a := agenttest.New(agenttest.Config{})
	l.agent = "@apf-test-agent"
	serveIn(t, l.vm, a, l.agent)
	p := l.start(t)
	mustCheck(t, l.adaptor(t))
	p.stop()
}

func TestTheOldNameOfTheConfigurationIsRead(t *testing.T) {
	l := newLab(t)
	l.agentProcess(t, false)
	l.write(t, func(m map[string]any) { m["later-key"] = true })
	if err := os.Rename(l.config(), l.dir+"/daemon.json"); err != nil {
		t.Fatal(err)
	}
	p := l.start(t)
	mustCheck(t, l.adaptor(t))
	p.stop()
	if !strings.Contains(p.text(), "key=later-key") {
		t.Errorf("no warning of an unknown key in\n%s", p.text())
	}
}

// Weak point 9 of upstream: a socket that a dead agent left says that there is
// one.
func TestReadyMeansListeningWhateverLiesAroundOfTheAgent(t *testing.T) {
	l := newLab(t)
	dead := l.agentProcess(t, false)
	dead.Kill() // its socket stays
	p := l.start(t)
	conn, err := l.node.dial(l.addr)
	if err != nil {
		t.Fatalf("ready, but: %v", err)
	}
	defer conn.Close()
	c := l.adaptor(t)
	l.agentProcess(t, false)
	mustCheck(t, c)
	p.stop()
	if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

// Weak point 12 of upstream: every pod may ask for the VM's credentials.
func TestThePodReachesNoMetadataServiceUnlessToldSo(t *testing.T) {
	l := newLab(t)
	before := l.states(t)
	p := l.start(t)
	if strings.Contains(l.vm.state(t), "169.254.169.254") {
		t.Error("it reaches one")
	}
	p.stop()
	p = l.start(t, "-imds", "169.254.169.254")
	if !strings.Contains(l.vm.state(t), "169.254.169.254") {
		t.Errorf("it reaches none:\n%s", l.vm.state(t))
	}
	p.stop()
	l.unchanged(t, before)
	if code, _, stderr := run(t, "-imds", "10.0.0.1"); code != 1 || !strings.Contains(stderr, "metadata service") {
		t.Errorf("another address: exit code %d, %q", code, stderr)
	}
}

// Weak point 10 of upstream: a source that is missing becomes a directory, where a
// file is meant too. And a container gets the pod's network, no other.
func TestAContainerIsChangedOnItsWay(t *testing.T) {
	l := newLab(t)
	t.Setenv(podvm.HostRootEnv, l.dir) // for /run/kata-containers
	a := agenttest.Start(t, agenttest.Config{Record: true})
	l.agent = a.Path()
	p := l.start(t)
	source := "/run/kata-containers/shared/containers/c-hosts"
	r := &agent.CreateContainerRequest{ContainerId: "c", OCI: &agent.Spec{
		Mounts: []*agent.Mount{{Destination: "/etc/hosts", Source: source, Type: "bind"}},
		Linux:  &agent.Linux{Namespaces: []*agent.LinuxNamespace{{Type: "network", Path: "/proc/1/ns/net"}, {Type: "pid"}}},
	}}
	if _, err := agent.NewAgentServiceClient(l.adaptor(t)).CreateContainer(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	calls := a.Calls("/grpc.AgentService/CreateContainer")
	got := new(agent.CreateContainerRequest)
	if len(calls) != 1 {
		t.Fatalf("%d calls", len(calls))
	} else if err := proto.Unmarshal(calls[0].Payload, got); err != nil {
		t.Fatal(err)
	}
	var networks []string
	for _, n := range got.OCI.Linux.Namespaces {
		if n.Type == "network" {
			networks = append(networks, n.Path)
		}
	}
	if !slices.Equal(networks, []string{l.pod.path}) {
		t.Errorf("networks %q", networks)
	}
	if st, err := os.Stat(l.dir + source); err != nil || !st.Mode().IsRegular() {
		t.Errorf("the source: %v, %v", st, err)
	}
	p.stop()
}

func TestLogsAreJSONWhereAskedFor(t *testing.T) {
	t.Setenv("SEALPOD_LOG_FORMAT", "json")
	l := newLab(t)
	p := l.start(t)
	p.stop()
	if !regexp.MustCompile(`(?m)^\{"time":.*"msg":"Ready"`).MatchString(p.text()) {
		t.Error(p.text())
	}
}
