package strict

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

var errJSON = errors.New("not JSON, or cut short")

// Members calls each for every member of the JSON object raw in order; equal
// names are not merged. Values stay encoded and are copies that each may keep
// and wipe; nothing else of raw stays behind in memory but names.
func Members(raw []byte, each func(name string, value json.RawMessage) error) error {
	if !utf8.Valid(raw) {
		return errors.New("not UTF-8")
	}
	c := cursor{raw}
	if !c.take('{') {
		return errors.New("not a JSON object")
	}
	for more := !c.take('}'); more; {
		name, err := Text(c.value())
		if err != nil || !c.take(':') {
			return fmt.Errorf("reading a member name: %w", errJSON)
		}
		value := c.value()
		if !json.Valid(value) { // which bounds how deep it is nested
			return fmt.Errorf("reading member %q: %w", podvm.Printable(name, 64), errJSON)
		}
		if err := each(name, bytes.Clone(value)); err != nil {
			return err
		}
		if more = c.take(','); !more && !c.take('}') {
			return fmt.Errorf("reading the end of the object: %w", errJSON)
		}
	}
	if c.space(); len(c.rest) > 0 {
		return errors.New("data after the JSON object")
	}
	return nil
}

// cursor walks over the members of an object in place, which a json.Decoder
// would copy to a buffer that nobody can wipe. It finds where a value has to
// end; encoding/json tells whether it is one.
type cursor struct{ rest []byte }

const space = " \t\r\n"

func (c *cursor) space() { c.rest = bytes.TrimLeft(c.rest, space) }

// take steps over b and space before it, if it comes next.
func (c *cursor) take(b byte) bool {
	c.space()
	if len(c.rest) == 0 || c.rest[0] != b {
		return false
	}
	c.rest = c.rest[1:]
	return true
}

// value steps over what comes before the next comma, colon or closing bracket
// outside of strings and brackets, and returns it without space around it.
func (c *cursor) value() []byte {
	depth, quoted, end := 0, false, len(c.rest)
scan:
	for i := 0; i < len(c.rest); i++ {
		switch b := c.rest[i]; {
		case b == '"':
			quoted = !quoted
		case quoted && b == '\\':
			i++
		case quoted:
		case b == '{' || b == '[':
			depth++
		case depth == 0 && (b == ',' || b == ':' || b == '}' || b == ']'):
			end = i
			break scan
		case b == '}' || b == ']':
			depth--
		}
	}
	v := c.rest[:end]
	c.rest = c.rest[end:]
	return bytes.Trim(v, space)
}
