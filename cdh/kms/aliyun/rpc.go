package aliyun

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"maps"
	"slices"
	"strings"
)

// rpcQuery signs the parameters of an RPC-style request with an access key
// secret and returns the query of its URL: the parameters in order of their
// names, percent-encoded, with the signature as one more.
// Source: Alibaba Cloud RPC API, "Request syntax and signature method V2",
// SignatureVersion 1.0, whose HMAC-SHA1 the collisions of SHA-1 do not touch.
func rpcQuery(method string, params map[string]string, secret []byte) string {
	var canonical []string
	for _, name := range slices.Sorted(maps.Keys(params)) {
		canonical = append(canonical, percent(name)+"="+percent(params[name]))
	}
	query := strings.Join(canonical, "&")
	key := append(slices.Clone(secret), '&')
	defer clear(key)
	mac := hmac.New(sha1.New, key)
	mac.Write([]byte(method + "&" + percent("/") + "&" + percent(query)))
	return query + "&Signature=" + percent(base64.StdEncoding.EncodeToString(mac.Sum(nil)))
}

// percent encodes s as RFC 3986 does: everything but letters, digits and "-_.~"
// becomes %XX in capitals. net/url encodes a space as "+".
func percent(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-_.~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}
