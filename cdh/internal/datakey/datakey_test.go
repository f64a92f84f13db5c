package datakey

import (
	"bytes"
	"encoding/hex"
	"testing"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestOpen takes published vectors: NIST SP 800-38A F.5.5 (CTR-AES256) and test
// case 14 of the GCM specification (AES-256, IV of 12 bytes).
func TestOpen(t *testing.T) {
	ctrKey := unhex(t, "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
	ctrIV := unhex(t, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
	got, err := Open(ctrKey, CTR, ctrIV, unhex(t, "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"))
	if want := unhex(t, "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("CTR: %x, %v", []byte(got), err)
	}
	sealed := "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919"
	got, err = Open(make([]byte, Size), GCM, make([]byte, 12), unhex(t, sealed))
	if err != nil || !bytes.Equal(got, make([]byte, 16)) {
		t.Errorf("GCM: %x, %v", []byte(got), err)
	}
	tests := map[string]struct {
		key      []byte
		wrap     string
		iv, data []byte
	}{
		"GCM with a flipped bit":  {make([]byte, Size), GCM, make([]byte, 12), append(unhex(t, sealed)[:31], 0x18)},
		"GCM with another IV":     {make([]byte, Size), GCM, append(make([]byte, 11), 1), unhex(t, sealed)},
		"GCM without IV":          {make([]byte, Size), GCM, nil, unhex(t, sealed)},
		"GCM shorter than a tag":  {make([]byte, Size), GCM, make([]byte, 12), make([]byte, 15)},
		"CTR with an IV of 12":    {ctrKey, CTR, ctrIV[:12], make([]byte, 16)},
		"CTR with an IV of 17":    {ctrKey, CTR, append(ctrIV[:16:16], 0), make([]byte, 16)},
		"a key of 31 bytes":       {ctrKey[:31], CTR, ctrIV, make([]byte, 16)},
		"a name in lower case":    {ctrKey, "a256gcm", ctrIV[:12], make([]byte, 16)},
		"no name":                 {ctrKey, "", ctrIV[:12], make([]byte, 16)},
		"neither one nor the two": {ctrKey, "A256KW", ctrIV[:12], make([]byte, 16)},
	}
	for name, tt := range tests {
		if got, err := Open(tt.key, tt.wrap, tt.iv, tt.data); err == nil {
			t.Errorf("%s: %x", name, []byte(got))
		}
	}
}
