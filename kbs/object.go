package kbs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/sealpod/sealpod/podvm"
)

// object is one JSON object with its members still encoded. Unlike
// encoding/json it keeps the exact case of names and refuses duplicates, so
// that no two parsers can read one document in two ways.
type object map[string]json.RawMessage

func parseObject(raw []byte) (object, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	o := object{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("reading a member name: %w", err)
		}
		name, _ := t.(string)
		if _, seen := o[name]; seen {
			return nil, fmt.Errorf("member %q appears twice", podvm.Printable(name, 64))
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("reading member %q: %w", podvm.Printable(name, 64), err)
		}
		o[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("reading the end of the object: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("data after the JSON object")
	}
	return o, nil
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
	var s string
	if err := json.Unmarshal(v, &s); err != nil {
		return "", fmt.Errorf("reading member %q: %w", name, err)
	}
	return s, nil
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

// raw returns the member name as it is encoded.
func (o object) raw(name string) (json.RawMessage, error) {
	v, ok := o[name]
	if !ok {
		return nil, fmt.Errorf("member %q is missing", name)
	}
	return v, nil
}
