package forwarder

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
)

// The benchmarks here measure the whole program in network namespaces, by turns
// with what it is compared with: direct is the agent's own socket, floor a
// process that copies bytes both ways between the same TLS and that socket.
// SEALPOD_BENCH_CHECK=1 makes a missed bar a failure.

// bar fails b when a measured value is not on the right side of one.
func bar(b *testing.B, name string, value float64, ok bool) {
	b.ReportMetric(value, name)
	if !ok && os.Getenv("SEALPOD_BENCH_CHECK") == "1" {
		b.Errorf("%s: %.3f misses its bar", name, value)
	}
}

func atMost(b *testing.B, name string, value, most float64) { bar(b, name, value, value <= most) }

func atLeast(b *testing.B, name string, value, least float64) { bar(b, name, value, value >= least) }

// floorEnv makes this test binary a floor; its value is an apf.json, an address
// and the agent's socket.
const floorEnv = "SEALPOD_TEST_FLOOR"

// beFloor copies bytes until standard input ends.
func beFloor(args []string) error {
	f, _, err := Load(args[0])
	if err != nil {
		return err
	}
	c, err := TLS{}.config(f, silent)
	if err != nil {
		return err
	}
	l, err := listen(context.Background(), args[1])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go copyBoth(tls.Server(raw, c), args[2])
		}
	}()
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

func copyBoth(host net.Conn, path string) {
	agent, err := net.Dial("unix", path)
	if err != nil {
		host.Close()
		return
	}
	go func() {
		_, _ = io.Copy(agent, host)
		agent.Close()
	}()
	_, _ = io.Copy(host, agent)
	host.Close()
}

// way is one way to the agent.
type way struct {
	name   string
	client *ttrpc.Client
	pid    int // of what stands in it, 0 if nothing does
	// Of the rounds so far: median time and 99th percentile of a call in µs,
	// calls per second, and time of processors per call in µs.
	p50, p99, rate, cpu []float64
}

// ways starts an agent, a floor and a forwarder.
func ways(b *testing.B) []*way {
	b.Helper()
	l := newLab(b)
	l.agentProcess(b, true)
	raw, err := net.Dial("unix", l.agent)
	if err != nil {
		b.Fatal(err)
	}
	direct := ttrpc.NewClient(raw)
	b.Cleanup(func() { direct.Close() })

	floorAddr := vmIP + ":15151"
	floor := exec.Command("/proc/self/exe")
	floor.Env = append(os.Environ(), floorEnv+"="+strings.Join([]string{l.config(), floorAddr, l.agent}, " "))
	floor.Stderr = os.Stderr
	in, err := floor.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := floor.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := l.vm.do(floor.Start); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); _ = floor.Wait() })
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.Fatal(err)
	}
	p := l.start(b)
	b.Cleanup(p.stop)
	ours := l.adaptor(b)
	l.addr = floorAddr
	copied := l.adaptor(b)
	l.addr = vmIP + ":15150"
	return []*way{
		{name: "direct", client: direct},
		{name: "floor", client: copied, pid: floor.Process.Pid},
		{name: "ours", client: ours, pid: p.cmd.Process.Pid},
	}
}

// cpuTime is what a process has used so far, in µs. Source: Linux
// Documentation/scheduler/sched-stats.rst.
func cpuTime(b *testing.B, pid int) (total float64) {
	if pid == 0 {
		return 0
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) {
			continue // a thread that ended
		} else if err != nil {
			b.Fatal(err)
		}
		ns, err := strconv.ParseFloat(strings.Fields(string(text))[0], 64)
		if err != nil {
			b.Fatal(err)
		}
		total += ns / 1e3
	}
	return total
}

const roundTime = 250 * time.Millisecond

// round makes calls with so many callers for a while.
func (w *way) round(b *testing.B, callers int, call func(*ttrpc.Client) error) {
	cpu, begin := cpuTime(b, w.pid), time.Now()
	took := make([][]time.Duration, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for time.Since(begin) < roundTime {
				t := time.Now()
				if err := call(w.client); err != nil {
					b.Errorf("%s: %v", w.name, err)
					return
				}
				took[i] = append(took[i], time.Since(t))
			}
		})
	}
	wg.Wait()
	all, spent := slices.Sorted(slices.Values(slices.Concat(took...))), time.Since(begin)
	if len(all) == 0 {
		b.FailNow()
	}
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	w.p50 = append(w.p50, us(all[len(all)/2]))
	w.p99 = append(w.p99, us(all[len(all)*99/100]))
	w.rate = append(w.rate, float64(len(all))/spent.Seconds())
	w.cpu = append(w.cpu, (cpuTime(b, w.pid)-cpu)/float64(len(all)))
}

// rounds makes 15 of them by turns, after two that do not count.
func rounds(b *testing.B, all []*way, callers int, call func(*ttrpc.Client) error) {
	for n := range 17 {
		for _, w := range all {
			w.round(b, callers, call)
			if n == 1 {
				w.p50, w.p99, w.rate, w.cpu = nil, nil, nil, nil
			}
		}
	}
	b.ReportMetric(0, "ns/op")
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

// asking returns a call with 64 bytes and a deadline, as the adaptor's have, that
// is answered with n bytes.
func asking(b *testing.B, n int) func(*ttrpc.Client) error {
	question, size := make([]byte, 64), strconv.Itoa(n)
	return func(c *ttrpc.Client) error {
		ctx, cancel := context.WithTimeout(agenttest.With(b.Context(), agenttest.AskReply, size), 30*time.Second)
		defer cancel()
		reply, err := agenttest.RawCall(ctx, c, "grpc.Health", "Check", question)
		if err == nil && len(reply) != n {
			err = fmt.Errorf("a reply of %d bytes", len(reply))
		}
		return err
	}
}

// BenchmarkForwarder is what a call costs.
func BenchmarkForwarder(b *testing.B) {
	if raceEnabled {
		b.Skip("the race detector is on")
	}
	all := ways(b)
	direct, floor, ours := all[0], all[1], all[2]
	reset := func() {
		for _, w := range all {
			w.p50, w.p99, w.rate, w.cpu = nil, nil, nil, nil
		}
	}
	b.Run("serial-64B", func(b *testing.B) {
		for b.Loop() {
			reset()
			rounds(b, all, 1, asking(b, 64))
		}
		for _, w := range all {
			b.ReportMetric(median(w.p50), w.name+"-p50-us")
		}
		b.ReportMetric(ratio(ours.p50, direct.p50), "p50/direct")
		atMost(b, "p50/floor", ratio(ours.p50, floor.p50), 1.10)
	})
	b.Run("64-callers-64B", func(b *testing.B) {
		for b.Loop() {
			reset()
			rounds(b, all, 64, asking(b, 64))
		}
		for _, w := range all {
			b.ReportMetric(median(w.rate), w.name+"-calls/s")
		}
		b.ReportMetric(median(floor.cpu), "floor-cpu-us")
		b.ReportMetric(median(ours.cpu), "ours-cpu-us")
		atMost(b, "cpu/floor", ratio(ours.cpu, floor.cpu), 1.10)
		atLeast(b, "calls/floor", ratio(ours.rate, floor.rate), 0.92)
	})
	for _, mib := range []int{1, 3} {
		for _, callers := range []int{1, 4} {
			b.Run(fmt.Sprintf("reply-%dMiB-%d-callers", mib, callers), func(b *testing.B) {
				for b.Loop() {
					reset()
					rounds(b, all, callers, asking(b, mib<<20))
				}
				for _, w := range all {
					b.ReportMetric(median(w.rate)*float64(mib<<20)/1e6, w.name+"-MB/s")
				}
				b.ReportMetric(ratio(ours.cpu, floor.cpu), "cpu/floor")
				atLeast(b, "MB/floor", ratio(ours.rate, floor.rate), 1)
			})
		}
	}
	b.Run("64-blocked", func(b *testing.B) {
		var blocked sync.WaitGroup
		for i := range 64 {
			blocked.Go(func() {
				_, err := agent.NewAgentServiceClient(ours.client).WaitProcess(context.Background(), &agent.WaitProcessRequest{ContainerId: strconv.Itoa(i)})
				if err != nil {
					b.Error(err)
				}
			})
		}
		for b.Loop() {
			reset()
			rounds(b, all[2:], 1, func(c *ttrpc.Client) error { return check(c, 30*time.Second) })
		}
		atMost(b, "p99-ms", slices.Max(ours.p99)/1e3, 5)
		for i := range 64 {
			if _, err := agent.NewAgentServiceClient(ours.client).SignalProcess(b.Context(), &agent.SignalProcessRequest{ContainerId: strconv.Itoa(i)}); err != nil {
				b.Error(err)
			}
		}
		blocked.Wait()
	})
}

// BenchmarkForwarderMemory is what a forwarder with one client holds.
func BenchmarkForwarderMemory(b *testing.B) {
	if raceEnabled {
		b.Skip("the race detector is on")
	}
	l := newLab(b)
	l.agentProcess(b, true)
	var idle, after []float64
	for b.Loop() {
		idle, after = idle[:0], after[:0]
		for range 5 {
			p := l.start(b)
			c := l.adaptor(b)
			mustCheck(b, c)
			idle = append(idle, p.memoryMB("VmRSS"))
			for range 50 {
				if err := asking(b, 3<<20)(c); err != nil {
					b.Fatal(err)
				}
			}
			after = append(after, p.memoryMB("VmRSS"))
			c.Close()
			p.stop()
		}
	}
	b.ReportMetric(0, "ns/op")
	atMost(b, "idle-MB", median(idle), 30)
	atMost(b, "after-3MiB-MB", median(after), 45)
}

// BenchmarkForwarderStart is the time from exec to an open port, the pod's
// network included.
func BenchmarkForwarderStart(b *testing.B) {
	if raceEnabled {
		b.Skip("the race detector is on")
	}
	l := newLab(b)
	l.start(b).stop()
	var took []float64
	for b.Loop() {
		took = took[:0]
		for range 11 {
			began := time.Now()
			p := l.launch(b)
			if err := l.node.do(func() error { return untilOpen(l.addr) }); err != nil {
				b.Fatal(err, p.text())
			}
			took = append(took, float64(time.Since(began).Microseconds())/1e3)
			if err := l.ready(p); err != nil {
				b.Fatal(err)
			}
			p.stop()
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(slices.Max(took), "worst-ms")
	atMost(b, "median-ms", median(took), 120)
}

// untilOpen connects until somebody listens.
func untilOpen(addr string) error {
	for end := time.Now().Add(20 * time.Second); ; {
		conn, err := net.DialTimeout("tcp4", addr, 5*time.Second)
		if err == nil {
			return conn.Close()
		}
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(end) {
			return err
		}
		wait(context.Background(), time.Millisecond)
	}
}
