package volume

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

func TestParse(t *testing.T) {
	group := 2000
	for name, c := range map[string]struct {
		annotation string
		want       []Volume
	}{
		"none":          {``, nil},
		"an empty list": {`{}`, nil},
		"the least": {
			`{"data":{"mount_point":"/data","lun":"0"}}`,
			[]Volume{{Name: "data", MountPoint: "/data", FSType: "ext4"}},
		},
		"everything, in the order of names": {
			` {"b":{"mount_point":"/b","lun":"63","fs_type":"xfs","disk_id":"vol-0abc","fs_group":"2000","encrypt_type":"","key_id":"unused"},
			  "a.1":{"mount_point":"/a/","lun":"1","fs_type":"ext3","encrypt_type":"LUKS","key_id":"default/volume/1","new":["x"]}} `,
			[]Volume{
				{Name: "a.1", MountPoint: "/a/", LUN: 1, FSType: "ext3", KeyID: "default/volume/1"},
				{Name: "b", MountPoint: "/b", LUN: 63, FSType: "xfs", DiskID: "vol-0abc", FSGroup: &group},
			},
		},
		"group 0": {
			`{"data":{"mount_point":"/data","lun":"0","fs_group":"0","encrypt_type":"luks2","key_id":"a/b/c-d_e.1"}}`,
			[]Volume{{Name: "data", MountPoint: "/data", FSType: "ext4", FSGroup: new(int), KeyID: "a/b/c-d_e.1"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := Parse(c.annotation); err != nil || !reflect.DeepEqual(got, c.want) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// refused are annotations and what is said of them.
func refused() map[string][2]string {
	entry := func(name, fields string) string {
		return fmt.Sprintf(`{%q:{"mount_point":"/data","lun":"0"%s}}`, name, fields)
	}
	m := map[string][2]string{
		"not JSON":            {`{"data":`, "malformed JSON"},
		"cut off":             {`{"data":{"mount_point":"/data","lun":"0"}`, "malformed JSON"},
		"a list":              {`[]`, "not a JSON object"},
		"null":                {`null`, "not a JSON object"},
		"a second value":      {entry("a", "") + `{}`, "something follows"},
		"garbage behind":      {entry("a", "") + `}`, "something follows"},
		"not UTF-8":           {"{\"\xff\":{}}", "not UTF-8"},
		"too long":            {entry("a", `,"disk_id":"`+strings.Repeat("x", maxAnnotation)+`"`), "longer than"},
		"a name twice":        {`{"a":{"mount_point":"/data","lun":"0"},"a":{"mount_point":"/data","lun":"1"}}`, "twice"},
		"a place twice":       {`{"a":{"mount_point":"/data","lun":"0","encrypt_type":"luks2","key_id":"a/b/c"},"b":{"mount_point":"/x/../data/","lun":"1"}}`, "both belong at"},
		"no object":           {`{"a":"b"}`, "not a JSON object of strings"},
		"null for a volume":   {`{"a":null}`, "not a JSON object of strings"},
		"a number":            {`{"a":{"mount_point":"/data","lun":0}}`, "not a JSON object of strings"},
		"no mount point":      {`{"a":{"lun":"0"}}`, "mount_point"},
		"a relative one":      {`{"a":{"mount_point":"data","lun":"0"}}`, "mount_point"},
		"a key in other case": {entry("a", `,"encrypt_type":"luks2","key_id":"a/b/c","Encrypt_Type":""`), "twice or is not"},
		"a key that folds":    {entry("a", `,"\u017aey":"","\u212aey_id":"a/b/c"`), "twice or is not"},
		"a key twice":         {entry("a", `,"encrypt_type":"luks2","key_id":"a/b/c","encrypt_type":""`), "twice or is not"},
		"a new key twice":     {entry("a", `,"new":1,"new":2`), "twice or is not"},
		"no LUN":              {`{"a":{"mount_point":"/data"}}`, "lun"},
		"a file system":       {entry("a", `,"fs_type":"vfat"`), "fs_type"},
		"an option":           {entry("a", `,"fs_type":"ext4 -o suid"`), "fs_type"},
		"an encryption":       {entry("a", `,"encrypt_type":"plain","key_id":"a/b/c"`), "encrypt_type"},
		"no key":              {entry("a", `,"encrypt_type":"luks"`), "needs key_id"},
		"only hyphens":        {entry("a", `,"disk_id":"--"`), "disk_id"},
		"a long disk":         {entry("a", `,"disk_id":"`+strings.Repeat("x", maxDiskID+1)+`"`), "disk_id"},
		"a control character": {entry("a", `,"disk_id":"a\u0000b"`), "not text"},
		"a long value":        {entry("a", `,"encrypt_type":"`+strings.Repeat("x", maxField+1)+`"`), "too long"},
	}
	many := make([]string, maxVolumes+1)
	for i := range many {
		many[i] = fmt.Sprintf(`"v%d":{"mount_point":"/data/%d","lun":"0"}`, i, i)
	}
	m["too many"] = [2]string{"{" + strings.Join(many, ",") + "}", "more than 64 volumes"}
	for _, name := range []string{"", ".", "..", ".hidden", "a/b", "/a", "../a", "-a", "a b", "a\nb", "ä", strings.Repeat("n", maxName+1)} {
		m["the name "+podvm.Printable(name, 32)] = [2]string{entry(name, ""), "bare file name"}
	}
	for _, lun := range []string{"", "-1", "+1", "01", " 1", "1.0", "0x1", "16384", "99999999999999999999"} {
		m["the LUN "+lun] = [2]string{fmt.Sprintf(`{"a":{"mount_point":"/data","lun":%q}}`, lun), "lun: "}
	}
	for _, group := range []string{"-1", "root", "4294967295", "1e3"} {
		m["the group "+group] = [2]string{entry("a", fmt.Sprintf(`,"fs_group":%q`, group)), "fs_group"}
	}
	for _, key := range []string{"a", "a/b", "a/b/c/d", "/a/b/c", "a//c", "a/../c/d", "a/b/c?x=y", "a/b/c#d", "kbs:///a/b/c", "a/b/c d", "a/b/%2e%2e", " a/b/c", "a/b/.."} {
		m["the key "+key] = [2]string{entry("a", fmt.Sprintf(`,"encrypt_type":"luks","key_id":%q`, key)), "key_id"}
	}
	return m
}

func TestParseRefuses(t *testing.T) {
	for name, c := range refused() {
		t.Run(name, func(t *testing.T) {
			got, err := Parse(c[0])
			if !errors.Is(err, ErrAnnotation) || got != nil {
				t.Fatalf("%+v, %v", got, err)
			}
			cause := podvm.Cause(err)
			if !strings.HasPrefix(cause, "corrupt cloud_volumes annotation: ") || !strings.Contains(cause, c[1]) || len(cause) > 400 {
				t.Errorf("the cause is %q, want %q in it", cause, c[1])
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	for _, c := range refused() {
		if len(c[0]) < 1024 {
			f.Add(c[0])
		}
	}
	f.Add(`{"data":{"mount_point":"/data","lun":"0","fs_group":"1","encrypt_type":"luks2","key_id":"a/b/c"}}`)
	f.Fuzz(func(t *testing.T, annotation string) {
		volumes, err := Parse(annotation)
		if err != nil && (!errors.Is(err, ErrAnnotation) || volumes != nil) {
			t.Fatal(err)
		}
		for i, v := range volumes {
			if !bareName(v.Name) || v.MountPoint[0] != '/' || v.LUN < 0 || v.LUN > maxLUN || strings.ContainsAny(v.KeyID, " ?#\n") {
				t.Errorf("%+v", v)
			}
			if i > 0 && volumes[i-1].Name >= v.Name {
				t.Errorf("%q before %q", volumes[i-1].Name, v.Name)
			}
		}
	})
}
