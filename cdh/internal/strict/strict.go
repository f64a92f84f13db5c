// Package strict reads JSON and base64 the way the Rust programs Sealpod
// replaces do, where encoding/json and encoding/base64 are more lenient: names
// match exactly, null is not a string, nothing follows the value, text is
// UTF-8, base64 holds no line ends and no stray bits.
//
// Data path: the parsers of the data hub (annotation packets, sealed secrets,
// credentials and answers of key management services, offline resource files)
// stand on it.
//
// Trust: input is hostile. Callers cap its size; nesting is bounded by
// encoding/json. Error texts name members, never their values.
//
// It does not decode into structs: the documents it is for have four to eight
// members, and each parser says itself what may be missing.
package strict

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/sealpod/sealpod/podvm"
)

// Object is a JSON object whose names are all different.
type Object map[string]json.RawMessage

// maxMembers caps an Object: what a member costs exceeds its bytes by far.
const maxMembers = 4096

// Parse reads raw as an Object. A name that appears twice is an error, so that
// no two parsers can read one document in two ways, and so are more members
// than 4096.
func Parse(raw []byte) (Object, error) {
	o := Object{}
	err := Members(raw, func(name string, value json.RawMessage) error {
		if _, seen := o[name]; seen {
			return fmt.Errorf("member %q appears twice", podvm.Printable(name, 64))
		}
		if len(o) == maxMembers {
			return fmt.Errorf("more than %d members", maxMembers)
		}
		o[name] = value
		return nil
	})
	if err != nil {
		return nil, err
	}
	return o, nil
}

// Has tells whether the member is there and not null.
func (o Object) Has(name string) bool {
	v, ok := o[name]
	return ok && string(v) != "null"
}

// Text returns the member name, which must be there and be a string.
func (o Object) Text(name string) (string, error) {
	v, ok := o[name]
	if !ok {
		return "", fmt.Errorf("member %q is missing", name)
	}
	s, err := Text(v)
	if err != nil {
		return "", fmt.Errorf("member %q: %w", name, err)
	}
	return s, nil
}

// TextOr returns the member name, which must be a string, or byDefault when it
// is absent. null is not absent.
func (o Object) TextOr(name, byDefault string) (string, error) {
	if _, ok := o[name]; !ok {
		return byDefault, nil
	}
	return o.Text(name)
}

// Bytes returns the member name, which must be a string of standard base64.
func (o Object) Bytes(name string) ([]byte, error) {
	s, err := o.Text(name)
	if err != nil {
		return nil, err
	}
	b, err := Base64(s)
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", name, err)
	}
	return b, nil
}

// Texts returns the member name, which must be an object of strings whose names
// all differ, or nil when it is absent.
func (o Object) Texts(name string) (map[string]string, error) {
	v, ok := o[name]
	if !ok {
		return nil, nil
	}
	in, err := Parse(v)
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", name, err)
	}
	texts := make(map[string]string, len(in))
	for k, v := range in {
		if texts[k], err = Text(v); err != nil {
			return nil, fmt.Errorf("member %q: one of its members: %w", name, err)
		}
	}
	return texts, nil
}

// Object returns the member name, which must be there and be an object whose
// names are all different.
func (o Object) Object(name string) (Object, error) {
	v, ok := o[name]
	switch {
	case !ok:
		return nil, fmt.Errorf("member %q is missing", name)
	case v[0] != '{':
		return nil, fmt.Errorf("member %q: not an object", name)
	}
	inner, err := Parse(v)
	if err != nil {
		return nil, fmt.Errorf("member %q: %w", name, err)
	}
	return inner, nil
}

// Text returns the JSON string v holds.
func Text(v json.RawMessage) (string, error) {
	if len(v) == 0 || v[0] != '"' {
		return "", errors.New("not a string")
	}
	var s string
	if err := json.Unmarshal(v, &s); err != nil {
		return "", errJSON // and not the decoder's text, which quotes input
	}
	return s, nil
}

// Secret decodes the JSON string v, of base64 as Base64 takes it, without
// leaving its text behind in memory that nobody can wipe.
func Secret(v json.RawMessage) (podvm.Secret, error) {
	if len(v) < 2 || v[0] != '"' || bytes.IndexByte(v, '\\') >= 0 { // base64 needs no escapes
		text, err := Text(v)
		if err != nil {
			return nil, err
		}
		return Base64(text)
	}
	text := v[1 : len(v)-1]
	out := make(podvm.Secret, base64.StdEncoding.DecodedLen(len(text)))
	n, err := standard.Decode(out, text)
	if err != nil {
		out.Wipe()
		return nil, errBase64
	}
	return out[:n], nil
}

// SecretText returns the JSON string v holds. Unless there are escapes in it,
// the result lies in v and leaves no copy behind in memory that nobody can wipe.
func SecretText(v json.RawMessage) (podvm.Secret, error) {
	if len(v) < 2 || v[0] != '"' || bytes.IndexByte(v, '\\') >= 0 {
		text, err := Text(v)
		return podvm.Secret(text), err
	}
	return podvm.Secret(v[1 : len(v)-1]), nil
}

// standard is base64 that holds no stray bits.
var standard = base64.StdEncoding.Strict()

var errBase64 = errors.New("not standard base64 with padding")

// Base64 decodes standard base64 with padding, without line ends, without bits
// left over.
func Base64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // the decoder skips them, Strict or not
		return nil, errors.New("base64 with a line end in it")
	}
	b, err := standard.DecodeString(s)
	if err != nil {
		return nil, errBase64
	}
	return b, nil
}

// Base64URL decodes the base64 of JOSE: URL alphabet, without padding, without
// line ends, without bits left over.
func Base64URL(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") { // the decoder skips them, Strict or not
		return nil, errors.New("base64url with a line end in it")
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return nil, errors.New("not base64url without padding")
	}
	return b, nil
}
