package model

import (
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/sealpod/sealpod/model/source"
	"github.com/sealpod/sealpod/model/source/settings"
)

// TestKinds: which source an address is of, as KServe decides it.
func TestKinds(t *testing.T) {
	env, err := settings.Load(newEnv(map[string]string{"awsAnonymousCredential": "true"}), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for address, want := range map[string]string{
		"s3://bucket/p": "*s3.Source", "gs://bucket/p": "*gcs.Source", "hf://owner/name:main": "*hf.Source", "oci://registry.example/a/b:v1": "*oci.Source", "file:///etc": "*local.Source", "/etc/passwd": "*local.Source",
		"https://acme.blob.core.windows.net/models/p": "*azblob.Source", "https://acme.z07.blob.storage.azure.net/models/p": "*azblob.Source",
		"https://models.example/m.bin": "*web.Source", "http://models.example/m.github.tar": "*web.Source", "https://blob.example/a.blob.core.windows.net/x": "*web.Source",
	} {
		s, err := open(address, env)
		if got := fmt.Sprintf("%T", s); got != want {
			t.Errorf("%s: %s, %v", address, got, err)
		}
		if c, ok := s.(interface{ Close() }); ok {
			c.Close()
		}
	}
	for _, address := range []string{
		"hdfs://x", "webhdfs://x", "modelscope://a/b", "git://x/y", "https://github.com/a/b.git", "https://github.com/a/b.git@v1", "pvc://claim/x",
		"https://a.file.core.windows.net/s/p", "https://a.z1.file.storage.azure.net/s", "ftp://x", "S3://b", "-x", "\n", "",
	} {
		if s, err := open(address, env); !errors.Is(err, source.ErrUnsupported) {
			t.Errorf("%q: %T, %v", address, s, err)
		}
	}
}
