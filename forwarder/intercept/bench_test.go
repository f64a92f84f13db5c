package intercept

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// A request of usual size: 12 kB of which the forwarder knows a quarter, ten
// mounts with all their sources there.
func BenchmarkCreateContainer(b *testing.B) {
	p := newPod(b)
	req := container()
	for n := range 10 {
		req.OCI.Mounts = append(req.OCI.Mounts, bind("/run", fmt.Sprint("/mnt/", n)))
		req.OCI.Annotations[fmt.Sprint("io.kubernetes.", n)] = strings.Repeat("x", 200)
	}
	req.OCI.ProtoReflect().SetUnknown(encode2(2, bytes.Repeat([]byte("x"), 9000)))
	payload := encode(b, req)
	if _, err := p.createContainer(b.Context(), payload); err != nil { // makes /run
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		if _, err := p.createContainer(b.Context(), payload); err != nil {
			b.Fatal(err)
		}
	}
}

// The requests of 4 MiB that would take the most memory; B/op is what they take
// before they are refused, or changed.
func BenchmarkHostileCreateContainer(b *testing.B) {
	annotations := container()
	for n := range maxItems {
		annotations.OCI.Annotations[fmt.Sprint(n)] = strings.Repeat("x", 1000)
	}
	mount := encode2(5, nil)
	for name, payload := range map[string][]byte{
		"empty mounts": encode2(6, bytes.Repeat(mount, 2<<20)),
		"annotations":  encode(b, annotations),
		"specs":        bytes.Repeat(encode2(6, encode2(8, nil)), 1<<20),
	} {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			p := newPod(b)
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			for b.Loop() {
				_, _ = p.createContainer(b.Context(), payload)
			}
		})
	}
}
