package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"unicode/utf8"

	"github.com/sealpod/sealpod/podvm"
)

// fields are the members of a JSON object by their exact name. encoding/json
// alone would match names in any case and let a repeated name replace the
// first, so that a reader and this program could see different policies.
type fields map[string]json.RawMessage

var errNotObject = errors.New("not a JSON object")

// object reads raw as exactly one JSON object without repeated names.
func object(raw []byte) (fields, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("not UTF-8 text")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil {
		return nil, fmt.Errorf("%w: %w", errNotObject, err)
	} else if t != json.Delim('{') {
		return nil, errNotObject
	}
	out := fields{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, ok := t.(string)
		if !ok {
			return nil, errNotObject
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%q appears twice", name)
		}
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return nil, fmt.Errorf("reading %q: %w", name, err)
		}
		out[name] = v
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return out, nil
}

// list reads raw as a JSON array that is not empty.
func list(raw []byte) ([]json.RawMessage, error) {
	var l []json.RawMessage
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, errors.New("not a JSON list")
	}
	if len(l) == 0 {
		return nil, errors.New("the list is empty; write insecureAcceptAnything or reject")
	}
	return l, nil
}

// text returns the string member name; ok is false when it is absent.
func (f fields) text(name string) (s string, ok bool, err error) {
	raw, ok := f[name]
	if !ok {
		return "", false, nil
	}
	if err := json.Unmarshal(raw, &s); err != nil || s == "" {
		return "", true, fmt.Errorf("%q is not a non-empty string", name)
	}
	return s, true, nil
}

// need returns the string member name, which must be there.
func (f fields) need(name string) (string, error) {
	s, ok, err := f.text(name)
	if err == nil && !ok {
		err = fmt.Errorf("%q is missing", name)
	}
	return s, err
}

// exactly returns an error that names the first member of f beyond these.
func (f fields) exactly(known ...string) error {
	for _, k := range sortedKeys(f) {
		if !slices.Contains(known, k) {
			return fmt.Errorf("unknown field %q", podvm.Printable(k, 64))
		}
	}
	return nil
}

// part returns the object member name, which must be there and may have no
// members beyond these.
func (f fields) part(name string, known ...string) (fields, error) {
	raw, ok := f[name]
	if !ok {
		return nil, fmt.Errorf("%q is missing", name)
	}
	sub, err := object(raw)
	if err == nil {
		err = sub.exactly(known...)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return sub, nil
}

// texts returns the member name, a list of strings; ok is false when absent.
func (f fields) texts(name string) (l []string, ok bool, err error) {
	raw, ok := f[name]
	if !ok {
		return nil, false, nil
	}
	if err := json.Unmarshal(raw, &l); err != nil || len(l) == 0 || slices.Contains(l, "") {
		return nil, true, fmt.Errorf("%q is not a non-empty list of non-empty strings", name)
	}
	return l, true, nil
}

func sortedKeys(f fields) []string { return slices.Sorted(maps.Keys(f)) }
