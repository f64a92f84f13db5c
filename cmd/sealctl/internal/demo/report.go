package demo

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
)

// Report is what a demo did, for machines.
type Report struct {
	OK           bool      `json:"ok"`
	Steps        []Step    `json:"steps"`
	Refusals     []Refusal `json:"refusals"`
	Attestations uint64    `json:"attestations"`
	DurationMS   float64   `json:"duration_ms"`
}

// Step is one thing that should work and its outcome.
type Step struct {
	ID         string            `json:"id"`
	Title      string            `json:"title"`
	OK         bool              `json:"ok"`
	DurationMS float64           `json:"duration_ms"`
	Detail     string            `json:"detail,omitempty"`
	Facts      map[string]string `json:"facts,omitempty"`
	Error      string            `json:"error,omitempty"`
}

// Refusal is one thing that must not work; OK says that it was refused for
// the reason it should be.
type Refusal struct {
	ID         string  `json:"id"`
	Title      string  `json:"title"`
	OK         bool    `json:"ok"`
	DurationMS float64 `json:"duration_ms"`
	Reason     string  `json:"reason"`
}

// WriteJSON writes the report as one indented JSON document.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(r)
}

func ms(d time.Duration) float64 {
	return float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
}

// printer shows the story as it goes on. A nil printer shows nothing.
type printer struct {
	w      io.Writer
	color  bool
	broken func(error) // told when w cannot be written to
}

const textWidth = 76

func (p *printer) style(code, s string) string {
	if !p.color {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p *printer) line(format string, args ...any) {
	if p == nil {
		return
	}
	if _, err := fmt.Fprintf(p.w, format+"\n", args...); err != nil {
		p.broken(fmt.Errorf("telling the story: %w", err))
	}
}

func (p *printer) chapter(title string) {
	if p != nil {
		p.line("\n%s", p.style("1", title))
	}
}

// row prints a marked title with its duration at the right edge and, below it,
// the detail.
func (p *printer) row(mark, title, detail string, d time.Duration) {
	if p == nil {
		return
	}
	dur := fmt.Sprintf("%.0f ms", ms(d))
	if d < 10*time.Millisecond {
		dur = fmt.Sprintf("%.1f ms", ms(d))
	}
	gap := max(2, textWidth-4-len([]rune(title))-len(dur))
	p.line("  %s %s%s%s", mark, title, strings.Repeat(" ", gap), p.style("2", dur))
	for _, l := range wrap(detail, textWidth-6) {
		p.line("      %s", p.style("2", l))
	}
}

func (p *printer) ok() string      { return p.mark("32", "✓") }
func (p *printer) failed() string  { return p.mark("31", "✗") }
func (p *printer) refused() string { return p.mark("33", "⊘") }

func (p *printer) mark(code, m string) string {
	if p == nil {
		return m
	}
	return p.style(code, m)
}

// wrap breaks text at spaces into lines of at most width runes; line breaks in
// text stay. A longer word stays whole.
func wrap(text string, width int) []string {
	var lines []string
	for _, para := range strings.Split(text, "\n") {
		if len([]rune(para)) <= width {
			if strings.TrimSpace(para) != "" {
				lines = append(lines, para)
			}
			continue
		}
		line := ""
		for _, word := range strings.Fields(para) {
			if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
				lines = append(lines, line)
				line = ""
			}
			if line != "" {
				line += " "
			}
			line += word
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	return lines
}
