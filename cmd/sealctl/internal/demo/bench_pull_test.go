package demo

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/imagepull"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// What BenchmarkPullImages is held to. The time of a pull is compared with what
// the machine makes possible: no pull is faster than the slowest of its stages
// is alone, nor than the CPU time of all stages spread over all cores.
const (
	barBound     = 1.15 // wall over that bound, at most
	barEncrypted = 1.10 // wall of an encrypted image over that of the plain one, at most
	barTar       = 1.3  // wall of 40000 small files over tar -x of the plain layer, at most
	barTools     = 2.0  // wall of skopeo copy and umoci unpack over that of a pull, at least
	barPeakMB    = 120  // peak resident set of the data hub, at most
	barSecondMS  = 50   // the second pull of an image, its policy decision included, at most
)

// toolRuns is how many rounds compare with other tools.
const toolRuns = 3

// pullCase is one image, pulled plain and, if sealed, encrypted.
type pullCase struct {
	name      string
	mediaType types.MediaType
	layers    int
	bytes     int64 // compressed, of a layer
	files     int   // small files instead of bytes, if not 0
	sealed    bool
	tools     bool // umoci reads no zstd layers
}

// BenchmarkPullImages pulls images by real daemons from a registry on loopback,
// cold each time: another data hub with another work directory. What it is
// compared with is measured in the same round, so that what else the machine
// does disturbs all alike; figures are medians over the rounds, peaks their
// maximum. Run it with -benchtime 1x.
//
//	SEALPOD_BENCH_MB     compressed size of the large layers (20); eight layers are a tenth each
//	SEALPOD_BENCH_RUNS   rounds (5)
//	SEALPOD_BENCH_CHECK  1 makes a missed bar a failure
func BenchmarkPullImages(b *testing.B) {
	mb, runs := number(b, "SEALPOD_BENCH_MB", 20), number(b, "SEALPOD_BENCH_RUNS", 5)
	sealpod(b) // which outlives the directory below
	b.Setenv("TMPDIR", roomyDir(b, mb))
	w := newWorld(b)
	blobs := quickRegistry(b, w)
	size := int64(mb) * 1e6
	for _, c := range []pullCase{
		{name: "gzip", mediaType: types.OCILayer, layers: 1, bytes: size, sealed: true, tools: true},
		{name: "gzip8", mediaType: types.OCILayer, layers: 8, bytes: size / 10, sealed: true, tools: true},
		{name: "zstd", mediaType: types.OCILayerZStd, layers: 1, bytes: size, sealed: true},
		{name: "small", mediaType: types.OCILayer, layers: 1, files: 40_000, tools: true},
	} {
		b.Run(c.name, func(b *testing.B) { c.run(b, w, blobs, runs) })
	}
}

func (c *pullCase) run(b *testing.B, w *world, blobs string, runs int) {
	goroot := goRoot(b)
	var layers []*fileLayer
	var image []v1.Layer
	var tarBytes, blobBytes int64
	for i := range c.layers {
		fill := goTree(goroot, uint32(100*i))
		if c.files > 0 {
			fill = smallFiles(goroot, c.files)
		}
		l := makeLayer(b, blobs, c.mediaType, c.bytes, fill)
		defer os.Remove(l.tar)
		layers, image = append(layers, l), append(image, l)
		fi, err := os.Stat(l.tar)
		must(b, err)
		tarBytes, blobBytes = tarBytes+fi.Size(), blobBytes+l.size
	}
	defer clearDir(b, blobs) // after these pulls nobody needs them
	refs := map[string]string{"plain": push(b, w, c.name, imageOf(b, image...))}
	if c.sealed {
		refs["sealed"] = sealCopy(b, w, blobs, refs["plain"], c.name+"-sealed")
	}
	b.Logf("%d layer(s), %.0f MB compressed, %.0f MB plain; %d rounds on %s, %d cores",
		c.layers, float64(blobBytes)/1e6, float64(tarBytes)/1e6, runs, fileSystem(w.dir), runtime.GOMAXPROCS(0))
	f := figures{map[string][]float64{}, map[string]string{}}
	for i := range runs {
		c.round(b, w, refs, layers, f)
		// They take as long as all the rest, and are far from their bar.
		if i < toolRuns {
			c.toolsRound(b, w, refs["plain"], f)
		}
	}
	for b.Loop() { // The rounds are what counts.
	}
	c.report(b, f)
}

// round measures each thing once.
func (c *pullCase) round(b *testing.B, w *world, refs map[string]string, layers []*fileLayer, f figures) {
	walls := map[string]float64{}
	for kind, ref := range refs {
		p := pullCold(b, w, ref)
		walls[kind] = p.wall.Seconds()
		f.add(kind+"-s", p.wall.Seconds())
		f.add(kind+"-cpu-s", p.cpu.Seconds())
		f.add(kind+"-peak-MB", p.peakMB)
		f.add(kind+"-second-ms", ms(p.second))
		for phase, took := range p.phases {
			f.add(kind+" "+phase, ms(took))
		}
	}
	stages := map[string][]cost{}
	for _, l := range layers {
		l.stages(b, w, c.name, c.sealed, stages)
	}
	bounds := map[string]float64{}
	for kind, wall := range walls {
		var slowest, cpu time.Duration
		for stage, costs := range stages {
			if stage == cipherStage && kind != "sealed" {
				continue
			}
			var all cost
			for _, one := range costs {
				slowest = max(slowest, one.wall)
				all.wall, all.cpu = all.wall+one.wall, all.cpu+one.cpu
			}
			cpu += all.cpu
			if kind == "plain" || stage == cipherStage {
				f.add(stage+" wall", all.wall.Seconds())
				f.add(stage+" CPU", all.cpu.Seconds())
			}
		}
		shared := cpu / time.Duration(runtime.GOMAXPROCS(0))
		f.add(kind+"-slowest-s", slowest.Seconds())
		f.add(kind+"-cpu/cores-s", shared.Seconds())
		bounds[kind] = max(slowest, shared).Seconds()
		f.add(kind+"/bound", wall/bounds[kind])
	}
	if c.sealed {
		f.add("bounds", bounds["sealed"]/bounds["plain"])
		f.add("sealed/plain", walls["sealed"]/walls["plain"])
	}
	if c.files > 0 {
		f.add("plain/tar-x", walls["plain"]/gnuTar(b, w, "-xf", layers[0].tar).Seconds())
	}
}

// toolsRound measures the usual tools, next to the last pull of the plain image.
func (c *pullCase) toolsRound(b *testing.B, w *world, ref string, f figures) {
	b.Helper()
	if !c.tools {
		f.none["tools/plain"] = "umoci reads no zstd layers"
	} else if took, why := skopeoUmoci(b, w, ref); why != "" {
		f.none["tools/plain"] = why
	} else {
		pulls := f.lists["plain-s"]
		f.add("tools/plain", took.Seconds()/pulls[len(pulls)-1])
	}
}

// pulled is what one cold pull took.
type pulled struct {
	wall, second time.Duration
	cpu          time.Duration // of data hub and registry, both pulls
	peakMB       float64
	phases       map[string]time.Duration // of the first pull, from the data hub's log
}

// loggedPhase is a phase with its time in a line about a pull.
var loggedPhase = regexp.MustCompile(`phases\.(\w+)=(\S+)`)

// pullCold pulls ref twice with new daemons.
func pullCold(b *testing.B, w *world, ref string) pulled {
	b.Helper()
	dir, err := os.MkdirTemp(w.dir, "pod-")
	must(b, err)
	defer os.RemoveAll(dir)
	g, err := w.guestConfig(b.Context(), dir, w.url())
	must(b, err)
	p, err := startPod(b.Context(), sealpod(b), g)
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			if err := p.stop(); err != nil {
				b.Error(err)
			}
		}
	}
	defer stop()
	must(b, err)
	var r pulled
	before := cpuTime(b)
	for i, took := range []*time.Duration{&r.wall, &r.second} {
		began := time.Now()
		_, _, err := p.pull(b.Context(), ref, strconv.Itoa(i))
		*took = time.Since(began)
		must(b, err)
	}
	hub := p.procs[1]
	r.peakMB = float64(hub.memoryKB("VmHWM")) * 1024 / 1e6
	r.cpu = cpuTime(b) - before
	stop()
	r.cpu += hub.cmd.ProcessState.UserTime() + hub.cmd.ProcessState.SystemTime()
	raw, err := os.ReadFile(hub.log)
	must(b, err)
	_, rest, _ := strings.Cut(string(raw), "Image pulled")
	first, _, _ := strings.Cut(rest, "\n")
	r.phases = map[string]time.Duration{}
	for _, m := range loggedPhase.FindAllStringSubmatch(first, -1) {
		r.phases[m[1]], err = time.ParseDuration(m[2])
		must(b, err)
	}
	return r
}

// report prints all figures and holds the bars. It makes few lines of them:
// package testing prints no more than ten.
func (c *pullCase) report(b *testing.B, f figures) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	check := func(what, unit string, got, bar float64) string {
		b.ReportMetric(got, unit)
		sign, met := "≤", got <= bar
		if bar == barTools {
			sign, met = "≥", got >= bar
		}
		result := "met"
		if !met {
			result = "MISSED"
		}
		said := fmt.Sprintf("%s %.2f (bar %s %v: %s)", what, got, sign, bar, result)
		if !met && os.Getenv("SEALPOD_BENCH_CHECK") == "1" {
			b.Error(said)
		}
		return said
	}
	var alone []string
	for _, stage := range stageNames {
		if len(f.lists[stage+" wall"]) > 0 {
			alone = append(alone, fmt.Sprintf("%s %.3f/%.3f", stage, f.median(stage+" wall"), f.median(stage+" CPU")))
		}
	}
	b.Logf("alone, wall/CPU s: %s", strings.Join(alone, ", "))
	for _, kind := range []string{"plain", "sealed"} {
		if len(f.lists[kind+"-s"]) == 0 {
			continue
		}
		b.ReportMetric(f.median(kind+"-s"), kind+"-s")
		var phases []string
		for _, phase := range imagepull.Phases() {
			phases = append(phases, fmt.Sprintf("%s %.0f", phase, f.median(kind+" "+string(phase))))
		}
		b.Logf("%s: wall %.3f s, CPU with the registry's %.3f; slowest stage %.3f, CPU of stages over cores %.3f; phases, ms: %s", kind,
			f.median(kind+"-s"), f.median(kind+"-cpu-s"), f.median(kind+"-slowest-s"), f.median(kind+"-cpu/cores-s"), strings.Join(phases, ", "))
		b.Logf("%s: %s; %s; %s", kind,
			check("wall/bound", kind+"/bound", f.median(kind+"/bound"), barBound),
			check("peak MB", kind+"-peak-MB", slices.Max(f.lists[kind+"-peak-MB"]), barPeakMB),
			check("second pull ms", kind+"-second-ms", f.median(kind+"-second-ms"), barSecondMS))
	}
	if c.sealed {
		b.Logf("%s; of the bounds %.2f", check("encrypted/plain", "sealed/plain", f.median("sealed/plain"), barEncrypted), f.median("bounds"))
	}
	if c.files > 0 {
		b.Log(check("wall/(tar -x)", "plain/tar-x", f.median("plain/tar-x"), barTar))
	}
	if why, ok := f.none["tools/plain"]; ok {
		b.Logf("skopeo and umoci: not measured, %s", why)
	} else {
		b.Log(check("(skopeo, umoci)/wall", "tools/plain", f.median("tools/plain"), barTools))
	}
}

// figures are what the rounds measured, by name; none says why one is missing.
type figures struct {
	lists map[string][]float64
	none  map[string]string
}

func (f figures) add(name string, v float64) { f.lists[name] = append(f.lists[name], v) }

func (f figures) median(name string) float64 {
	list := slices.Sorted(slices.Values(f.lists[name]))
	if len(list) == 0 { // a phase that was not gone through
		return 0
	}
	return list[len(list)/2]
}

// clearDir removes what is in dir.
func clearDir(b *testing.B, dir string) {
	b.Helper()
	must(b, os.RemoveAll(dir))
	must(b, os.Mkdir(dir, 0o700))
}

// number is the environment variable key, which must be positive, or def.
func number(b *testing.B, key string, def int) int {
	b.Helper()
	n, err := strconv.Atoi(cmp.Or(os.Getenv(key), strconv.Itoa(def)))
	must(b, err)
	if n < 1 {
		b.Fatalf("%s is %d: want at least 1", key, n)
	}
	return n
}

// roomyDir returns a fresh directory with room for images of that size, on tmpfs
// if memory allows: a disk would be what is measured. At most there are blob,
// encrypted blob and plain tar, and the image unpacked or with the usual tools.
func roomyDir(b *testing.B, mb int) string {
	b.Helper()
	need := uint64(mb)*10e6 + 1e9
	for _, parent := range []string{"/dev/shm", os.TempDir()} {
		var st unix.Statfs_t
		if unix.Statfs(parent, &st) != nil || st.Bavail*uint64(st.Bsize) < need {
			continue
		}
		if st.Type == unix.TMPFS_MAGIC && availableMemory(b) < need+2e9 {
			continue
		}
		dir, err := os.MkdirTemp(parent, "pull-")
		must(b, err)
		b.Cleanup(func() { must(b, os.RemoveAll(dir)) })
		return dir
	}
	testenv.Missing(b, fmt.Sprintf("needs %.1f GB of space", float64(need)/1e9))
	return ""
}

// fileSystem names the file system that dir is on.
func fileSystem(dir string) string {
	var st unix.Statfs_t
	switch err := unix.Statfs(dir, &st); {
	case err != nil:
		return err.Error()
	case st.Type == unix.TMPFS_MAGIC:
		return "tmpfs"
	default:
		return fmt.Sprintf("a disk (%#x)", st.Type)
	}
}

// availableMemory is the memory that can be had without swapping, in bytes.
func availableMemory(b *testing.B) uint64 {
	b.Helper()
	raw, err := os.ReadFile("/proc/meminfo")
	must(b, err)
	for line := range strings.Lines(string(raw)) {
		var kb uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kb); n == 1 {
			return kb << 10
		}
	}
	return 0
}
