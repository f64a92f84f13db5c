package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

// object is one JSON object with its members still encoded, in slices of the
// document. Unlike encoding/json it keeps the exact case of names and refuses
// duplicates, so that no two parsers can read one document in two ways.
type object map[string]json.RawMessage

func parseObject(raw []byte) (object, error) {
	if !json.Valid(raw) {
		return nil, errors.New("not one valid JSON value")
	}
	raw = bytes.Trim(raw, jsonSpace)
	if raw[0] != '{' {
		return nil, errors.New("not a JSON object")
	}
	// From here on the syntax is known to be good: it is only cut up.
	o := object{}
	for rest := raw[1:]; ; {
		rest = bytes.TrimLeft(rest, jsonSpace+",")
		if rest[0] == '}' {
			return o, nil
		}
		end := valueEnd(rest)
		name, err := unquote(rest[:end])
		if err != nil {
			return nil, err
		}
		if _, seen := o[name]; seen {
			return nil, fmt.Errorf("member %q appears twice", podvm.Printable(name, 64))
		}
		rest = bytes.TrimLeft(rest[end:], jsonSpace+":")
		end = valueEnd(rest)
		o[name] = json.RawMessage(rest[:end:end])
		rest = rest[end:]
	}
}

const jsonSpace = " \t\r\n"

// valueEnd returns where the JSON value at the start of b ends.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // after a number or literal
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

// unquote returns the text of a valid JSON string.
func unquote(quoted []byte) (string, error) {
	// Without escapes the text stands as it is. Ciphertexts are long enough for
	// this to matter.
	if plain := quoted[1 : len(quoted)-1]; bytes.IndexByte(plain, '\\') < 0 && utf8.Valid(plain) {
		return string(plain), nil
	}
	var s string
	if err := json.Unmarshal(quoted, &s); err != nil {
		return "", fmt.Errorf("reading a JSON string: %w", err)
	}
	return s, nil
}

// has tells whether the member is there and not null.
func (o object) has(name string) bool {
	v, ok := o[name]
	return ok && !bytes.Equal(v, []byte("null"))
}

// text returns the member name, which must be a string.
func (o object) text(name string) (string, error) {
	v, ok := o[name]
	if !ok {
		return "", fmt.Errorf("member %q is missing", name)
	}
	if len(v) == 0 || v[0] != '"' {
		return "", fmt.Errorf("member %q is not a string", name)
	}
	return unquote(v)
}

// secret returns the member name, which must be a string, without leaving its
// text behind in memory that nobody can wipe. The caller wipes the result.
func (o object) secret(name string) (podvm.Secret, error) {
	v := o[name]
	if len(v) < 2 || v[0] != '"' {
		_, err := o.text(name)
		return nil, err
	}
	out := make(podvm.Secret, 0, len(v))
	for i := 1; i < len(v)-1; i++ {
		c := v[i]
		if c == '\\' {
			i++
			switch v[i] {
			case 'n':
				c = '\n'
			case 'r':
				c = '\r'
			case '"', '\\', '/':
				c = v[i]
			default: // nothing that writes keys escapes more
				out.Wipe()
				s, err := unquote(v)
				return podvm.Secret(s), err
			}
		}
		out = append(out, c)
	}
	return out, nil
}

// texts fills each destination from the member of that name.
func (o object) texts(into map[string]*string) error {
	for name, dst := range into {
		s, err := o.text(name)
		if err != nil {
			return err
		}
		*dst = s
	}
	return nil
}

// raw returns a copy of the member name as it is encoded.
func (o object) raw(name string) (json.RawMessage, error) {
	v, ok := o[name]
	if !ok {
		return nil, fmt.Errorf("member %q is missing", name)
	}
	return bytes.Clone(v), nil
}
