package relay

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// The benchmarks compare, in one run and by turns, what stands between a ttrpc
// client and an agent: nothing (direct, the agent's own socket), a copy of bytes
// both ways behind TLS (floor), the relay behind TLS. Floor and relay are
// processes of their own, so that their time and memory are known.
//
//	go test -run '^$' -bench . -benchtime 10s ./forwarder/relay

// middleEnv makes this test binary a floor or a relay to the socket that
// middleSocketEnv names; it serves until its standard input ends.
const (
	middleEnv       = "RELAY_TEST_MIDDLE"
	middleSocketEnv = "RELAY_TEST_SOCKET"
)

func middleMain(kind, path string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	r := New(Config{Dial: dialTo(path)})
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			if kind == "relay" {
				raw = NewSocket(raw)
			}
			conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate()}})
			if kind == "floor" {
				go floor(conn, path)
			} else {
				go func() { _ = r.Serve(context.Background(), conn) }()
			}
		}
	}()
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// floor copies both ways.
func floor(host net.Conn, path string) {
	agent, err := net.Dial("unix", path)
	if err != nil {
		panic(err)
	}
	go func() {
		_, _ = io.Copy(agent, host)
		agent.Close()
	}()
	_, _ = io.Copy(host, agent)
	host.Close()
}

// middle is what stands between; process is nil if nothing does.
type middle struct {
	name    string
	conn    net.Conn
	client  *ttrpc.Client
	process *os.Process

	// Of the rounds so far.
	p50, perSecond, cpu []float64
}

func startMiddle(b *testing.B, name, path string) *middle {
	m := &middle{name: name}
	if name == "direct" {
		conn, err := net.Dial("unix", path)
		if err != nil {
			b.Fatal(err)
		}
		m.conn = conn
	} else {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), middleEnv+"="+name, middleSocketEnv+"="+path)
		cmd.Stderr = os.Stderr
		in, _ := cmd.StdinPipe()
		out, _ := cmd.StdoutPipe()
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { in.Close(); _ = cmd.Wait() })
		addr, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			b.Fatal(err)
		}
		conn, err := tls.Dial("tcp", strings.TrimSpace(addr), &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			b.Fatal(err)
		}
		m.conn, m.process = conn, cmd.Process
	}
	m.client = ttrpc.NewClient(m.conn)
	b.Cleanup(func() { m.client.Close() })
	return m
}

// cpuTime is what the process has used so far, in seconds. Source: Linux
// Documentation/scheduler/sched-stats.rst.
func (m *middle) cpuTime(b *testing.B) (total float64) {
	if m.process == nil {
		return 0
	}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", m.process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", m.process.Pid, task.Name()))
		if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
		if err != nil {
			b.Fatal(err)
		}
		total += ns / 1e9
	}
	return total
}

// rss is the resident memory of the process, in MB.
func (m *middle) rss(b *testing.B) float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", m.process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "VmRSS:")
	kb, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
	if err != nil {
		b.Fatal(err)
	}
	return kb / 1e3
}

// round makes calls with so many callers until time is up.
func (m *middle) round(b *testing.B, d time.Duration, callers int, call func(*ttrpc.Client) error) {
	cpu, begin := m.cpuTime(b), time.Now()
	took := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for time.Since(begin) < d {
				t := time.Now()
				if err := call(m.client); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(t))
			}
		})
	}
	wg.Wait()
	all, spent := slices.Sorted(slices.Values(slices.Concat(took...))), time.Since(begin)
	m.p50 = append(m.p50, float64(all[len(all)/2])/1e3)
	m.perSecond = append(m.perSecond, float64(len(all))/spent.Seconds())
	m.cpu = append(m.cpu, (m.cpuTime(b)-cpu)/float64(len(all))*1e6)
}

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// ratio is the median of the ratios of rounds that followed each other.
func ratio(of, to []float64) float64 {
	r := make([]float64, len(of))
	for i := range of {
		r[i] = of[i] / to[i]
	}
	return median(r)
}

const roundTime = 250 * time.Millisecond

// compare makes rounds of calls through all kinds of middle by turns.
func compare(b *testing.B, callers, payload int) {
	path := socket(b)
	startAgent(b, path)
	var all []*middle
	for _, name := range []string{"direct", "floor", "relay"} {
		all = append(all, startMiddle(b, name, path))
	}
	in, method := &bytesValue{Value: make([]byte, 64)}, "Echo"
	req := any(in)
	if payload > 64 {
		req, method = &wrapperspb.UInt32Value{Value: uint32(payload)}, "Size"
	}
	call := func(c *ttrpc.Client) error {
		var out bytesValue
		if err := c.Call(b.Context(), service, method, req, &out); err != nil {
			return err
		}
		if len(out.Value) != payload {
			return fmt.Errorf("%d bytes", len(out.Value))
		}
		return nil
	}
	for range 2 {
		for _, m := range all {
			m.round(b, roundTime, callers, call)
		}
	}
	for _, m := range all {
		m.p50, m.perSecond, m.cpu = nil, nil, nil
	}
	for b.Loop() {
		for _, m := range all {
			m.round(b, roundTime, callers, call)
		}
	}
	b.ReportMetric(0, "ns/op")
	direct, floor, relay := all[0], all[1], all[2]
	for _, m := range all {
		b.ReportMetric(median(m.p50), m.name+"-p50-us")
		b.ReportMetric(median(m.perSecond), m.name+"-calls/s")
	}
	b.ReportMetric(median(floor.cpu), "floor-cpu-us")
	b.ReportMetric(median(relay.cpu), "relay-cpu-us")
	b.ReportMetric(ratio(relay.p50, floor.p50), "p50/floor")
	b.ReportMetric(ratio(relay.perSecond, floor.perSecond), "calls/floor")
	b.ReportMetric(ratio(relay.cpu, floor.cpu), "cpu/floor")
	b.ReportMetric(ratio(relay.p50, direct.p50), "p50/direct")
	b.ReportMetric(relay.rss(b), "relay-rss-MB")
}

func BenchmarkSerial64B(b *testing.B)    { compare(b, 1, 64) }
func Benchmark64Callers64B(b *testing.B) { compare(b, 64, 64) }
func BenchmarkReply1MiB(b *testing.B)    { compare(b, 1, 1<<20) }
func BenchmarkReply3MiB(b *testing.B)    { compare(b, 1, 3<<20) }
func Benchmark8Callers3MiB(b *testing.B) { compare(b, 8, 3<<20) }
