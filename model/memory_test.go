package model

import (
	"errors"
	"os"
	"path/filepath"
	"runtime/debug"
	"testing"
	"time"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/podvm"
)

// newEnv is a machine with only these variables.
func newEnv(vars map[string]string) podvm.Host {
	return podvm.Host{LookupEnv: func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}}
}

func TestMemoryLimit(t *testing.T) {
	for name, tt := range map[string]struct {
		files   map[string]string
		want    int64
		workers int
	}{
		"none":                  {map[string]string{"sys/fs/cgroup/memory.max": "max\n"}, 0, 64},
		"nothing to read":       {nil, 0, 64},
		"version 2":             {map[string]string{"sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30, 64},
		"a small group":         {map[string]string{"sys/fs/cgroup/memory.max": "104857600\n"}, 100 << 20, 13},
		"smaller than possible": {map[string]string{"sys/fs/cgroup/memory.max": "1048576\n"}, 1 << 20, 2},
		"above its own":         {map[string]string{"proc/self/cgroup": "0::/pod/container\n", "sys/fs/cgroup/pod/container/memory.max": "max\n", "sys/fs/cgroup/pod/memory.max": "536870912\n"}, 512 << 20, 64},
		"version 1":             {map[string]string{"proc/self/cgroup": "5:cpu,memory:/a\n4:pids:/b\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "268435456\n"}, 256 << 20, 58},
		"version 1, none":       {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 0, 64},
		"a way out":             {map[string]string{"proc/self/cgroup": "0::/../../../etc\n", "sys/fs/cgroup/memory.max": "1073741824\n"}, 1 << 30, 64},
	} {
		host := podvm.Host{Root: t.TempDir()}
		for path, text := range tt.files {
			p := filepath.Join(host.Root, path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		before := debug.SetMemoryLimit(-1)
		if got, workers := LimitMemory(host), maxWorkers(host); got != tt.want || workers != tt.workers {
			t.Errorf("%s: %d and %d workers", name, got, workers)
		}
		if got := debug.SetMemoryLimit(before); tt.want > 0 && got != tt.want-tt.want/8 {
			t.Errorf("%s: the collector keeps to %d", name, got)
		}
	}
}

func TestProgress(t *testing.T) {
	p := NewProgress()
	p.enter("key")
	p.began = time.Now().Add(-3 * time.Second)
	if got := p.Status().String(); got != "key  3.0s" {
		t.Errorf("%q", got)
	}
	f := &fetch.Folder{}
	p.fetching([]*fetch.Folder{f}, 4_000_000_000, 3)
	f.Stats.Bytes.Store(3_000_000_000)
	f.Stats.Resumed.Store(1_000_000_000)
	f.Stats.Files.Store(1)
	f.Stats.Fetching.Store(80)
	f.Stats.Opening.Store(15)
	f.Stats.Writing.Store(5)
	p.fetched = time.Now().Add(-2 * time.Second)
	s := p.Status()
	if s.Percent() != 75 || s.Rate/1e7 != 99 && s.Rate/1e7 != 100 || s.Left.Round(time.Second) != time.Second || s.Shares != [3]int{80, 15, 5} {
		t.Errorf("%+v", s)
	}
	s.Rate = 1_000_000_000
	if got := s.String(); got != " 75%  3.0 GB of 4.0 GB  1/3 files  1.0 GB/s  1s left  fetch 80% open 15% write 5%" {
		t.Errorf("%q", got)
	}
	p.enter("done")
	if s := p.Status(); s.Percent() != 100 || s.Elapsed != p.Status().Elapsed {
		t.Errorf("%+v", s)
	}
}
