// Package octets reads bytes that stand in JSON as an array of numbers, as the
// attesters in Rust write byte vectors.
//
// Place in the data path: packages snp and azvtpm parse evidence with it.
//
// Trust: the JSON is hostile; its length is the caller's to bound. An array of
// n characters takes less than n/2 bytes.
package octets

import "errors"

// Array is such bytes; null is nil.
type Array []byte

var errArray = errors.New("not an array of numbers from 0 to 255")

// UnmarshalJSON implements json.Unmarshaler. The text is valid JSON already;
// fractions, exponents, signs and numbers above 255 are refused.
func (o *Array) UnmarshalJSON(text []byte) error {
	if string(text) == "null" {
		*o = nil
		return nil
	}
	if len(text) < 2 || text[0] != '[' {
		return errArray
	}
	out := make([]byte, 0, len(text)/4+1)
	value, digits := 0, 0
	for _, c := range text[1:] {
		switch {
		case c >= '0' && c <= '9':
			value, digits = value*10+int(c-'0'), digits+1
			if value > 255 || digits > 3 {
				return errArray
			}
		case c == ',' || c == ']':
			if digits > 0 {
				out = append(out, byte(value))
			}
			value, digits = 0, 0
		case c == ' ' || c == '\n' || c == '\r' || c == '\t':
		default:
			return errArray
		}
	}
	*o = out
	return nil
}
