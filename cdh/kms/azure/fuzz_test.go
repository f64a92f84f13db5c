package azure

import (
	"bytes"
	"strings"
	"testing"
)

func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"access_token":"a","token_type":"Bearer","expires_in":"3599"}`))
	f.Add([]byte(`{"access_token":"a","token_type":"bearer","expires_in":3599}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, life, err := parseToken(raw)
		if err == nil && (len(v) == 0 || bytes.ContainsAny(v, " \r\n\x00") || life <= 0 || life > maxLife) {
			t.Fatalf("%q, %s", []byte(v), life)
		}
		fault(raw)
	})
}

func FuzzCredential(f *testing.F) {
	f.Add([]byte(credFile))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, tenant, _, err := parseCredential(raw); err == nil && (tenant == "" || strings.ContainsAny(tenant, "/?#%") || strings.Contains(tenant, "..")) {
			t.Fatalf("%q", tenant)
		}
	})
}

func FuzzKey(f *testing.F) {
	f.Add([]byte(`"AAAA"`))
	f.Add([]byte(`"AA\nA"`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if s, err := secretBase64(raw); err != nil && s != nil {
			t.Fatalf("%q beside %v", []byte(s), err)
		}
	})
}

func FuzzPlace(f *testing.F) {
	f.Add(vaultURL, keyID)
	f.Add("https://a.vault.azure.cn/", "https://a.vault.azure.cn/keys/k/v")
	f.Fuzz(func(t *testing.T, url, id string) {
		p, err := parsePlace(url)
		if err != nil {
			return
		}
		if strings.Count(p.host(), ".") != strings.Count(p.domain, ".")+1 || strings.ContainsAny(p.host(), "/?#@:%\\ ") {
			t.Fatalf("host %q", p.host())
		}
		if path, err := p.object("keys", id); err == nil && (strings.Contains(path, "..") || strings.ContainsAny(path, "?#%\\ ") || strings.Count(path, "/") > 3) {
			t.Fatalf("path %q", path)
		}
	})
}
