package model

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sealpod/sealpod/model/fetch"
	"github.com/sealpod/sealpod/podvm"
)

// Progress is how far a run is. Its methods may be called at any time.
type Progress struct {
	mu      sync.Mutex
	phase   string
	began   time.Time // the run
	fetched time.Time // the fetching
	ended   time.Time
	folders []*fetch.Folder
	total   int64
	files   int
}

// NewProgress returns the Progress of a run that begins now.
func NewProgress() *Progress { return &Progress{phase: "starting", began: time.Now()} }

func (p *Progress) enter(phase string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.phase = phase; phase == "done" {
		p.ended = time.Now()
	}
}

func (p *Progress) fetching(folders []*fetch.Folder, total int64, files int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.phase, p.fetched = "fetching", time.Now()
	p.folders, p.total, p.files = folders, total, files
}

// Status is a moment of a Progress.
type Status struct {
	Phase string `json:"phase"` // starting, listing, key, planning, fetching, unpacking or done
	// Bytes of files, or of objects that are one encrypted message each. Total is
	// what the sources said; Resumed are those of Done from a run before.
	Done    int64 `json:"done"`
	Total   int64 `json:"total"`
	Resumed int64 `json:"resumed"`

	FilesDone int           `json:"filesDone"`
	Files     int           `json:"files"`
	Elapsed   time.Duration `json:"elapsed"`       // since the beginning
	Fetching  time.Duration `json:"fetching"`      // since the first byte was asked for
	Rate      int64         `json:"bytesPerSec"`   // since then, without those resumed
	Left      time.Duration `json:"left"`          // at this rate, -1 when nobody knows
	Shares    [3]int        `json:"sharesPercent"` // of the workers' time: fetch, open, write
}

// Status returns how far the run is now.
func (p *Progress) Status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if !p.ended.IsZero() {
		now = p.ended
	}
	s := Status{Phase: p.phase, Total: p.total, Files: p.files, Elapsed: now.Sub(p.began), Left: -1}
	var times [3]int64
	for _, f := range p.folders {
		s.Done += f.Stats.Bytes.Load()
		s.Resumed += f.Stats.Resumed.Load()
		s.FilesDone += int(f.Stats.Files.Load())
		times[0] += f.Stats.Fetching.Load()
		times[1] += f.Stats.Opening.Load()
		times[2] += f.Stats.Writing.Load()
	}
	if sum := times[0] + times[1] + times[2]; sum > 0 {
		for i, t := range times {
			s.Shares[i] = int((100*t + sum/2) / sum)
		}
	}
	if p.fetched.IsZero() {
		return s
	}
	s.Fetching = now.Sub(p.fetched)
	if fresh := s.Done - s.Resumed; fresh > 0 && s.Fetching > 0 {
		s.Rate = int64(float64(fresh) / s.Fetching.Seconds())
	}
	if s.Rate > 0 && s.Total >= s.Done {
		s.Left = time.Duration(float64(s.Total-s.Done) / float64(s.Rate) * float64(time.Second))
	}
	return s
}

// Percent is how much is done, 0 to 100.
func (s Status) Percent() int {
	if s.Phase == "done" {
		return 100
	}
	if s.Total <= 0 {
		return 0
	}
	return int(min(100*(float64(s.Done)/float64(s.Total)), 100))
}

// String says it in a line.
func (s Status) String() string {
	if s.Fetching == 0 {
		return fmt.Sprintf("%s  %.1fs", s.Phase, s.Elapsed.Seconds())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%3d%%  %s of %s  %d/%d files  %s/s", s.Percent(), podvm.SizeText(s.Done), podvm.SizeText(s.Total), s.FilesDone, s.Files, podvm.SizeText(s.Rate))
	switch {
	case s.Phase == "done":
		fmt.Fprintf(&b, "  in %.1fs", s.Elapsed.Seconds())
	case s.Phase != "fetching":
		fmt.Fprintf(&b, "  %s", s.Phase)
	case s.Left >= 0:
		fmt.Fprintf(&b, "  %s left", s.Left.Round(time.Second))
	}
	fmt.Fprintf(&b, "  fetch %d%% open %d%% write %d%%", s.Shares[0], s.Shares[1], s.Shares[2])
	return b.String()
}
