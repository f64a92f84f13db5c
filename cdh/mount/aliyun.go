package mount

import (
	"github.com/sealpod/sealpod/cdh/mount/oss"
)

// parseOSS reads the options of an alibaba-cloud-oss request. All but the last
// five must be there, as upstream has it, though not all are used.
func parseOSS(o *options) (oss.Volume, error) {
	var v oss.Volume
	var unused string
	for _, f := range []struct {
		name string
		to   *string
	}{
		{"akId", &v.AccessKeyID}, {"akSecret", &v.SecretKey}, {"bucket", &v.Bucket}, {"otherOpts", &v.Options},
		{"path", &v.Path}, {"url", &v.URL}, {"readonly", &unused}, {"targetPath", &unused}, {"volumeId", &unused},
	} {
		var err error
		if *f.to, err = o.need(f.name); err != nil {
			return v, err
		}
	}
	v.Encrypted, v.Password = o.or("encrypted", ""), o.or("encPasswd", "")
	_, _ = o.get("annotations")
	_, _ = o.get("kmsKeyId")
	return v, v.Check()
}
