package podvm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-viper/mapstructure/v2"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxConfig caps a configuration file. Policies and CA bundles are often
// inlined, so it is generous.
const maxConfig = 4 << 20

// ErrConfig says that a configuration file cannot be used as it stands.
var ErrConfig = errors.New("invalid configuration")

// UnknownKey is a key of a configuration file that nothing reads. Upstream
// ignores such keys, so they are reported, not refused.
type UnknownKey struct {
	Key  string // dotted path, as in "image.registry_config.typo"
	Line int    // 1-based; 0 when not known
}

func (u UnknownKey) String() string {
	if u.Line == 0 {
		return fmt.Sprintf("unknown key %q", u.Key)
	}
	return fmt.Sprintf("line %d: unknown key %q", u.Line, u.Key)
}

// LoadConfig reads the file at path into the struct that into points to, whose
// fields carry `config:"name"` tags. Keys absent from the file keep the value
// into already has, so defaults go in first.
//
// The format follows the extension: .toml or .json. A path that does not exist
// is tried again with each of these appended, as upstream's loader does; any
// other extension is ErrConfig. Text is coerced to booleans (true, on, yes, 1
// and their opposites) and integers, as upstream's loader does.
//
// Errors: ErrConfig for content, ErrTooLarge beyond 4 MiB, fs.ErrNotExist.
// Source: config-rs as used by guest-components at 8246e5e.
func LoadConfig(path string, into any) ([]UnknownKey, error) {
	raw, path, err := readConfig(path)
	if err != nil {
		return nil, err
	}
	ext := filepath.Ext(path)
	unknown, err := DecodeConfig(raw, strings.TrimPrefix(ext, "."), into)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return unknown, nil
}

func readConfig(path string) (raw []byte, found string, err error) {
	raw, err = ReadFileMax(path, maxConfig)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return raw, path, err
	}
	for _, ext := range []string{".toml", ".json"} {
		if b, e := ReadFileMax(path+ext, maxConfig); e == nil {
			return b, path + ext, nil
		}
	}
	return nil, path, err
}

// DecodeConfig is LoadConfig for bytes in memory; format is "toml" or "json".
func DecodeConfig(raw []byte, format string, into any) ([]UnknownKey, error) {
	var tree map[string]any
	var lines func([]byte) map[string]int
	switch format {
	case "toml":
		if err := toml.Unmarshal(raw, &tree); err != nil {
			var de *toml.DecodeError
			if errors.As(err, &de) {
				row, col := de.Position()
				return nil, fmt.Errorf("%w: line %d column %d: %v", ErrConfig, row, col, de)
			}
			return nil, fmt.Errorf("%w: %v", ErrConfig, err)
		}
		lines = tomlLines
	case "json":
		d := json.NewDecoder(bytes.NewReader(raw))
		d.UseNumber()
		if err := d.Decode(&tree); err != nil {
			return nil, fmt.Errorf("%w: line %d: %v", ErrConfig, lineAt(raw, d.InputOffset()), err)
		}
		if _, err := d.Token(); !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: line %d: data after the JSON value", ErrConfig, lineAt(raw, d.InputOffset()))
		}
		lines = jsonLines
	default:
		return nil, fmt.Errorf("%w: format %q: want a .toml or .json file", ErrConfig, format)
	}
	var meta mapstructure.Metadata
	dec, err := mapstructure.NewDecoder(&mapstructure.DecoderConfig{
		Result: into, Metadata: &meta, TagName: "config",
		MatchName:  func(key, field string) bool { return key == field },
		DecodeHook: mapstructure.DecodeHookFuncType(coerce),
	})
	if err != nil {
		return nil, fmt.Errorf("preparing the decoder: %w", err)
	}
	if err := dec.Decode(tree); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrConfig, err)
	}
	if len(meta.Unused) == 0 {
		return nil, nil
	}
	at := lines(raw)
	unknown := make([]UnknownKey, 0, len(meta.Unused))
	for _, k := range meta.Unused {
		unknown = append(unknown, UnknownKey{Key: Printable(k, 200), Line: at[dropIndexes(k)]})
	}
	slices.SortFunc(unknown, func(a, b UnknownKey) int {
		return (a.Line-b.Line)*2 + strings.Compare(a.Key, b.Key)
	})
	return unknown, nil
}

// coerce turns text into booleans and integers, and scalars into text.
func coerce(from, to reflect.Type, v any) (any, error) {
	s, isText := v.(string)
	switch to.Kind() {
	case reflect.Bool:
		if !isText {
			return v, nil
		}
		switch strings.ToLower(s) {
		case "true", "on", "yes", "1":
			return true, nil
		case "false", "off", "no", "0":
			return false, nil
		}
	case reflect.Int, reflect.Int64, reflect.Uint, reflect.Uint64:
		if isText {
			return strconv.ParseInt(s, 10, 64)
		}
	case reflect.String:
		switch from.Kind() {
		case reflect.Bool, reflect.Int64, reflect.Float64:
			return fmt.Sprint(v), nil
		}
	}
	return v, nil
}

// dropIndexes turns "a.b[3].c" into "a.b.c": line tables do not tell elements
// of an array of tables apart, the first of that name is reported.
func dropIndexes(key string) string {
	var b strings.Builder
	depth := 0
	for _, r := range key {
		switch {
		case r == '[':
			depth++
		case r == ']' && depth > 0:
			depth--
		case depth == 0:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func lineAt(raw []byte, offset int64) int {
	return 1 + bytes.Count(raw[:min(int64(len(raw)), offset)], []byte("\n"))
}

// lineCounter tells the lines of offsets that do not go down, in one pass.
type lineCounter struct {
	raw      []byte
	at, line int
}

func (c *lineCounter) lineAt(offset int) int {
	if offset > c.at {
		c.line += bytes.Count(c.raw[c.at:offset], []byte("\n"))
		c.at = offset
	}
	return 1 + c.line
}

// tomlLines maps each dotted key of a valid TOML document to its line.
func tomlLines(raw []byte) map[string]int {
	at := map[string]int{}
	count := lineCounter{raw: raw}
	var p unstable.Parser
	p.Reset(raw)
	table := ""
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.KeyValue && e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue
		}
		path := table
		if e.Kind != unstable.KeyValue {
			path = ""
		}
		line := 0
		for it := e.Key(); it.Next(); {
			n := it.Node()
			if line == 0 {
				line = count.lineAt(int(n.Raw.Offset))
			}
			path = join(path, string(n.Data))
			if _, seen := at[path]; !seen {
				at[path] = line
			}
		}
		if e.Kind != unstable.KeyValue {
			table = path
		}
	}
	return at
}

// jsonLines maps each dotted key of a valid JSON document to its line.
func jsonLines(raw []byte) map[string]int {
	at := map[string]int{}
	count := lineCounter{raw: raw}
	d := json.NewDecoder(bytes.NewReader(raw))
	var walk func(path string)
	walk = func(path string) {
		t, err := d.Token()
		if err != nil {
			return
		}
		switch t {
		case json.Delim('{'):
			for d.More() {
				k, err := d.Token()
				if err != nil {
					return
				}
				name := join(path, fmt.Sprint(k))
				if _, seen := at[name]; !seen {
					at[name] = count.lineAt(int(d.InputOffset()))
				}
				walk(name)
			}
			_, _ = d.Token()
		case json.Delim('['):
			for d.More() {
				walk(path)
			}
			_, _ = d.Token()
		}
	}
	walk("")
	return at
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
