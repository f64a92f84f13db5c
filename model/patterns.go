package model

import (
	"encoding/json"
	"strings"
	"unicode/utf8"

	"github.com/sealpod/sealpod/model/source/settings"
)

// Limits of patterns.
const (
	maxPatterns   = 1000
	maxPatternLen = 1024 // bytes of one
)

// Patterns are shell-style patterns as Python's module fnmatch has them, for
// whole paths: * stands for any text, slashes included, ? for one character, [seq]
// and [!seq] for one of some. There is no escaping.
type Patterns []string

// ParsePatterns reads a JSON array of patterns, or patterns with commas between
// them. Errors: source.ErrUsage.
func ParsePatterns(text string) (Patterns, error) {
	var all []string
	if json.Unmarshal([]byte(text), &all) != nil {
		all = strings.Split(text, ",")
	}
	var out Patterns
	for _, p := range all {
		if p = strings.TrimSpace(p); p == "" {
			continue
		}
		if len(p) > maxPatternLen || len(out) == maxPatterns {
			return nil, settings.Usage("STORAGE_ALLOW_PATTERNS or STORAGE_IGNORE_PATTERNS: more than %d patterns, or one of more than %d bytes", maxPatterns, maxPatternLen)
		}
		out = append(out, p)
	}
	return out, nil
}

// Match tells whether one of the patterns stands for path.
func (p Patterns) Match(path string) bool {
	for _, pattern := range p {
		if match(pattern, path) {
			return true
		}
	}
	return false
}

// match compares character by character. Of all stars only the last one passed
// may have to take more, so it ends after len(pattern) × len(name) steps at most.
func match(pattern, name string) bool {
	var p, n int
	star, taken := -1, 0 // where to go on when the rest does not fit
	for n < len(name) {
		if p < len(pattern) && pattern[p] == '*' {
			star, taken = p, n
			p++
			continue
		}
		c, size := utf8.DecodeRuneInString(name[n:])
		if width, ok := one(pattern[p:], c); ok {
			p, n = p+width, n+size
			continue
		}
		if star < 0 {
			return false
		}
		_, size = utf8.DecodeRuneInString(name[taken:])
		taken += size
		p, n = star+1, taken
	}
	return strings.Trim(pattern[p:], "*") == ""
}

// one tells whether the first element of pattern stands for c, and how many
// bytes it has.
func one(pattern string, c rune) (width int, ok bool) {
	first, width := utf8.DecodeRuneInString(pattern)
	switch {
	case pattern == "":
		return 0, false
	case first == '?':
		return width, true
	case first != '[':
		return width, first == c
	}
	end := 1
	if strings.HasPrefix(pattern[end:], "!") {
		end++
	}
	if strings.HasPrefix(pattern[end:], "]") { // which is one of the set here
		end++
	}
	n := strings.IndexByte(pattern[end:], ']')
	if n < 0 {
		return 1, c == '[' // no set after all
	}
	set, negated := strings.CutPrefix(pattern[1:end+n], "!")
	return end + n + 1, in(set, c) != negated
}

// in tells whether c is one of a set of characters and ranges.
func in(set string, c rune) bool {
	chars := []rune(set)
	for i := 0; i < len(chars); i++ {
		if i+2 < len(chars) && chars[i+1] == '-' {
			if chars[i] <= c && c <= chars[i+2] {
				return true
			}
			i += 2
		} else if chars[i] == c {
			return true
		}
	}
	return false
}
