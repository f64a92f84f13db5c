package forwarder

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// lab is a worker node and a pod VM in network namespaces.
type lab struct {
	node, vm, pod *namespace
	dir           string
	agent         string // its socket
	worker        worker
	addr          string // the forwarder's, in node
	notify        *net.UnixConn
	forwarder     *apf // of tests that have one
}

// The addresses of a lab.
const (
	nodeIP = "10.99.0.1"
	vmIP   = "10.99.0.2"
)

func newLab(t testing.TB) *lab {
	t.Helper()
	testenv.Root(t)
	for _, tool := range []string{"ip", "iptables", "nft", "sysctl"} {
		testenv.Tool(t, tool)
	}
	dir, err := os.MkdirTemp("", "apf-") // t.TempDir is too long for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &lab{
		node: newNamespace(t), vm: newNamespace(t), pod: newNamespace(t),
		dir: dir, agent: filepath.Join(dir, "agent.sock"), worker: autoWorker(t), addr: vmIP + ":15150",
	}
	l.node.run(t, "ip", "link", "add", "vm", "type", "veth", "peer", "name", "ens4", "netns", strings.Split(l.vm.path, "/")[2])
	for n, dev := range map[*namespace]string{l.node: "vm", l.vm: "ens4"} {
		n.run(t, "ip", "link", "set", dev, "addrgenmode", "none") // no address comes by itself later
	}
	l.node.run(t, "ip", "addr", "add", nodeIP+"/24", "dev", "vm")
	l.node.run(t, "ip", "link", "set", "vm", "up")
	l.vm.run(t, "ip", "addr", "add", vmIP+"/24", "dev", "ens4")
	l.vm.run(t, "ip", "link", "set", "ens4", "up")
	l.vm.run(t, "ip", "route", "add", "default", "via", nodeIP)
	until(t, "the link is up", func() bool { return strings.Contains(l.vm.run(t, "ip", "link", "show", "ens4"), "state UP") })
	if l.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.notify.Close() })
	l.write(t, nil)
	return l
}

// podNetworkOf is what an adaptor says of a pod, with the default route as it
// really writes it.
func podNetworkOf() map[string]any {
	route := func(dst, gw string) map[string]any {
		return map[string]any{"dst": dst, "gw": gw, "dev": "eth0"}
	}
	return map[string]any{
		"podip": "10.244.1.7/24", "pod-hw-addr": "0a:58:0a:f4:01:07", "interface": "eth0", "worker-node-ip": nodeIP + "/24",
		"tunnel-type": "vxlan", "routes": []any{route("::ffff:0.0.0.0/0", "10.244.1.1"), route("10.244.1.0/24", "")},
		"neighbors": nil, "mtu": 1450, "index": 3, "vxlan-port": 4789, "vxlan-id": 555003,
	}
}

// write writes apf.json, changed.
func (l *lab) write(t testing.TB, change func(map[string]any)) {
	t.Helper()
	m := map[string]any{
		"pod-network": podNetworkOf(), "pod-namespace": "default", "pod-name": "nginx",
		"tls-server-cert": string(l.worker.server.cert), "tls-server-key": string(l.worker.server.key), "tls-client-ca": string(l.worker.client.cert),
	}
	if change != nil {
		change(m)
	}
	raw, err := json.Marshal(m)
	if err == nil {
		err = os.WriteFile(l.config(), raw, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) config() string { return filepath.Join(l.dir, "apf.json") }

func (l *lab) metricsSocket() string { return filepath.Join(l.dir, "m.sock") }

// apf is a forwarder's process.
type apf struct {
	t    testing.TB
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // once done is closed
}

// launch starts a forwarder and does not wait for it.
func (l *lab) launch(t testing.TB, args ...string) *apf {
	t.Helper()
	p := &apf{t: t, log: filepath.Join(l.dir, "forwarder.log"), done: make(chan struct{})}
	for l.heard(0) != "" { // of one that was killed
	}
	out, err := os.OpenFile(p.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	all := []string{
		"agent-protocol-forwarder", "-config", l.config(), "-kata-agent-socket", l.agent,
		"--pod-namespace=" + l.pod.path, "-metrics", "unix://" + l.metricsSocket(),
	}
	p.cmd = exec.Command(sealpod(t), append(all, args...)...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+l.notify.LocalAddr().String())
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := l.vm.do(p.cmd.Start); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// start starts a forwarder and returns when it says that it is ready.
func (l *lab) start(t testing.TB, args ...string) *apf {
	t.Helper()
	p := l.launch(t, args...)
	if err := l.ready(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// heard returns what the service manager is told next, "" if nothing within d.
func (l *lab) heard(d time.Duration) string {
	buf := make([]byte, 512)
	_ = l.notify.SetReadDeadline(time.Now().Add(d + time.Millisecond))
	n, _ := l.notify.Read(buf)
	return string(buf[:n])
}

// ready waits for READY=1 or the end of p.
func (l *lab) ready(p *apf) error {
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if strings.Contains(l.heard(100*time.Millisecond), "READY=1") {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("the forwarder ended (%v):\n%s", p.err, p.text())
		default:
		}
	}
	return fmt.Errorf("the forwarder is not ready:\n%s", p.text())
}

// text is what the forwarder printed.
func (p *apf) text() string {
	b, err := os.ReadFile(p.log)
	return fmt.Sprint(string(b), errors.Join(err))
}

func (p *apf) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop asks the forwarder to end, and it must within seconds and in order.
func (p *apf) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.code(); code != 0 {
		p.t.Errorf("exit code %d; the log:\n%s", code, p.text())
	}
}

// code waits for the end and returns the exit code.
func (p *apf) code() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the forwarder does not end:\n%s", p.text())
	}
	return p.cmd.ProcessState.ExitCode()
}

// files is how many the forwarder has open.
func (p *apf) files() int {
	list, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	return len(list)
}

// memoryMB is a size of /proc/PID/status in MB.
func (p *apf) memoryMB(key string) float64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		var kb int
		if n, _ := fmt.Sscanf(line, key+": %d kB", &kb); n == 1 {
			return float64(kb) * 1024 / 1e6
		}
	}
	p.t.Fatalf("no %s in the status", key)
	return 0
}

// metric asks the forwarder for one of its numbers.
func (l *lab) metric(t testing.TB, name string) float64 {
	t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.metricsSocket())
	}}
	resp, err := (&http.Client{Transport: tr}).Get("http://forwarder/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(b.String()) {
		var v float64
		if n, _ := fmt.Sscanf(line, name+" %g", &v); n == 1 {
			return v
		}
	}
	t.Fatalf("no metric %s in\n%s", name, b.String())
	return 0
}

// adaptor connects as cloud-api-adaptor does.
func (l *lab) adaptor(t testing.TB) *ttrpc.Client {
	t.Helper()
	c, err := l.connect(l.worker.config(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func (l *lab) connect(c *tls.Config) (*ttrpc.Client, error) {
	conn, err := l.node.dial(l.addr)
	if err != nil {
		return nil, err
	}
	if c != nil {
		secured := tls.Client(conn, c)
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := secured.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = secured
	}
	return ttrpc.NewClient(conn), nil
}

// check is the first call of a pod's life.
func check(c *ttrpc.Client, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := agent.NewHealthClient(c).Check(ctx, &agent.CheckRequest{})
	return err
}

func mustCheck(t testing.TB, c *ttrpc.Client) {
	t.Helper()
	if err := check(c, 20*time.Second); err != nil {
		t.Fatal(err)
	}
}

// waitProcess begins a call that blocks and returns once the agent has it. limit
// is the caller's, 0 for none.
func (l *lab) waitProcess(t testing.TB, c *ttrpc.Client, container string, limit time.Duration) <-chan error {
	t.Helper()
	ended, id := make(chan error, 1), "wait "+container
	go func() {
		ctx := agenttest.With(context.Background(), agenttest.AskID, id)
		if limit > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, limit)
			defer cancel()
		}
		_, err := agent.NewAgentServiceClient(c).WaitProcess(ctx, &agent.WaitProcessRequest{ContainerId: container})
		ended <- err
	}()
	until(t, "the agent has the call", func() bool {
		delivered, err := agenttest.ReadJournal(l.journal())
		return err == nil && delivered[id] > 0
	})
	return ended
}

func (l *lab) journal() string { return filepath.Join(l.dir, "journal") }

// agentProcess starts a stand-in for kata-agent.
func (l *lab) agentProcess(t testing.TB, plain bool) *agenttest.Process {
	t.Helper()
	return agenttest.StartProcess(t, agenttest.ProcessConfig{Socket: l.agent, Journal: l.journal(), Plain: plain})
}

// closed says whether err is what a client gets on a connection that is lost.
func closed(err error) bool {
	var op *net.OpError
	return errors.Is(err, ttrpc.ErrClosed) || errors.As(err, &op) || errors.Is(err, io.ErrUnexpectedEOF)
}

// states are the namespaces a forwarder works in.
func (l *lab) states(t testing.TB) []string {
	t.Helper()
	return []string{l.vm.state(t), l.pod.state(t)}
}

// unchanged compares them with those of before.
func (l *lab) unchanged(t testing.TB, before []string) {
	t.Helper()
	if after := l.states(t); !slices.Equal(before, after) {
		t.Errorf("the namespaces changed:\n%s", diff(strings.Join(before, ""), strings.Join(after, "")))
	}
}

// diff lists the lines that only one of both has.
func diff(before, after string) string {
	var b strings.Builder
	only := func(sign, a, in string) {
		have := strings.Split(in, "\n")
		for line := range strings.Lines(a) {
			if line = strings.TrimSuffix(line, "\n"); !slices.Contains(have, line) {
				fmt.Fprintf(&b, "%s %s\n", sign, line)
			}
		}
	}
	only("-", before, after)
	only("+", after, before)
	return b.String()
}
