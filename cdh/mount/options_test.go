package mount

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/podvm"
)

// with returns options, changed as in "name=value" or "-name".
func with(base map[string]string, changes ...string) map[string]string {
	o := maps.Clone(base)
	for _, c := range changes {
		if name, ok := strings.CutPrefix(c, "-"); ok {
			delete(o, name)
		} else {
			name, value, _ := strings.Cut(c, "=")
			o[name] = value
		}
	}
	return o
}

var (
	luksOptions = map[string]string{"devicePath": "/disk", "sourceType": "empty", "encryptionType": "luks2", "targetType": "fileSystem"}
	zfsOptions  = map[string]string{"deviceId": "8:16", "sourceType": "encrypted", "encryptionType": "zfs", "key": "kbs:///a/b/c"}
	ossOptions  = map[string]string{
		"akId": "id", "akSecret": "secret", "bucket": "bucket", "otherOpts": "-o max_stat_cache_size=0 -o allow_other", "path": "/",
		"readonly": "", "targetPath": "", "url": "https://oss.example.com", "volumeId": "",
	}
)

func TestParseBlockDevice(t *testing.T) {
	tests := map[string]struct {
		in    map[string]string
		want  func(b *blockDevice)
		wrong string // part of the cause
	}{
		"the least":        {in: luksOptions, want: func(*blockDevice) {}},
		"a device":         {in: with(luksOptions, "targetType=device", "filesystemType=xfs", "mkfsOpts=-d /etc"), want: func(b *blockDevice) { b.filesystem = false }},
		"encrypted":        {in: with(luksOptions, "sourceType=encrypted", "key=sealed.a.b.c"), want: func(b *blockDevice) { b.encrypted, b.key = true, "sealed.a.b.c" }},
		"as the forwarder": {in: with(luksOptions, "key=kbs:///id", "mapperName=caa-vol", "filesystemType=ext4"), want: func(b *blockDevice) { b.key, b.mapperName = "kbs:///id", "caa-vol" }},
		"as kata-agent": {in: with(luksOptions, "-devicePath", "deviceId=259:1", "dataIntegrity=true", "mkfsOpts=-E lazy_journal_init"), want: func(b *blockDevice) {
			b.path, b.byNumber, b.major, b.minor, b.integrity, b.mkfsOptions = "", true, 259, 1, true, []string{"-E", "lazy_journal_init"}
		}},
		"the number wins": {in: with(luksOptions, "deviceId=8:0"), want: func(b *blockDevice) { b.path, b.byNumber, b.major = "", true, 8 }},
		"integrity as 1":  {in: with(luksOptions, "dataIntegrity=1"), want: func(*blockDevice) {}},
		"unknown option":  {in: with(luksOptions, "new=1"), want: func(*blockDevice) {}},
		"zfs": {in: with(zfsOptions, "targetType=fileSystem"), want: func(b *blockDevice) {
			*b = blockDevice{byNumber: true, major: 8, minor: 16, encrypted: true, key: "kbs:///a/b/c", zfs: true, pool: "zpool", dataset: "zdataset"}
		}},
		"no device":            {in: with(luksOptions, "-devicePath"), wrong: "deviceId or devicePath is missing"},
		"a relative device":    {in: with(luksOptions, "devicePath=dev/sda"), wrong: "devicePath"},
		"an option as device":  {in: with(luksOptions, "devicePath=--header"), wrong: "devicePath"},
		"a line in device":     {in: with(luksOptions, "devicePath=/dev/a\nb"), wrong: "devicePath"},
		"a bad number":         {in: with(luksOptions, "deviceId=8"), wrong: "deviceId"},
		"three numbers":        {in: with(luksOptions, "deviceId=8:1:2"), wrong: "deviceId"},
		"a signed number":      {in: with(luksOptions, "deviceId=+8:1"), wrong: "deviceId"},
		"a path as number":     {in: with(luksOptions, "deviceId=../../x:1"), wrong: "deviceId"},
		"a number too large":   {in: with(luksOptions, "deviceId=4294967296:1"), wrong: "deviceId"},
		"no source type":       {in: with(luksOptions, "-sourceType"), wrong: `"sourceType" is missing`},
		"a source type":        {in: with(luksOptions, "sourceType=Empty"), wrong: "want empty or encrypted"},
		"no encryption":        {in: with(luksOptions, "-encryptionType"), wrong: `"encryptionType" is missing`},
		"another encryption":   {in: with(luksOptions, "encryptionType=luks"), wrong: "want luks2 or zfs"},
		"no target":            {in: with(luksOptions, "-targetType"), wrong: `"targetType" is missing`},
		"another target":       {in: with(luksOptions, "targetType=filesystem"), wrong: "want device or fileSystem"},
		"an empty key":         {in: with(luksOptions, "key="), wrong: "is empty"},
		"no key, encrypted":    {in: with(luksOptions, "sourceType=encrypted"), wrong: "needs the option"},
		"xfs":                  {in: with(luksOptions, "filesystemType=xfs"), wrong: "want ext4"},
		"a mapper path":        {in: with(luksOptions, "mapperName=../sda"), wrong: "mapperName"},
		"a mapper option":      {in: with(luksOptions, "mapperName=--header"), wrong: "mapperName"},
		"the control device":   {in: with(luksOptions, "mapperName=control"), wrong: "mapperName"},
		"no mapper name":       {in: with(luksOptions, "mapperName="), wrong: "mapperName"},
		"a long mapper name":   {in: with(luksOptions, "mapperName="+strings.Repeat("x", 124)), wrong: "mapperName"},
		"mkfs copies files":    {in: with(luksOptions, "mkfsOpts=-d /etc"), wrong: `"-d"`},
		"mkfs, hidden":         {in: with(luksOptions, "mkfsOpts=-qd /etc"), wrong: `"-qd"`},
		"mkfs on another disk": {in: with(luksOptions, "mkfsOpts=/dev/sdb"), wrong: `"/dev/sdb"`},
		"mkfs journal outside": {in: with(luksOptions, "mkfsOpts=-J size=4,device=/dev/sdb"), wrong: "-J size=4"},
		"mkfs journal, joined": {in: with(luksOptions, "mkfsOpts=-Jdevice=/dev/sdb"), wrong: "-J device"},
		"mkfs offset":          {in: with(luksOptions, "mkfsOpts=-F -E stride=2,offset=1024"), wrong: "-E stride"},
		"mkfs dry run":         {in: with(luksOptions, "mkfsOpts=-n"), wrong: `"-n"`},
		"mkfs without a value": {in: with(luksOptions, "mkfsOpts=-F -b"), wrong: `"-b"`},
		"mkfs long option":     {in: with(luksOptions, "mkfsOpts=--help"), wrong: `"--help"`},
		"zfs without a key":    {in: with(zfsOptions, "-key", "sourceType=empty"), wrong: "needs the option"},
		"pool as option":       {in: with(zfsOptions, "pool=-f"), wrong: "pool"},
		"pool with a slash":    {in: with(zfsOptions, "pool=a/b"), wrong: "pool"},
		"pool as vdev":         {in: with(zfsOptions, "pool=mirror-0"), wrong: "reserved"},
		"dataset as snapshot":  {in: with(zfsOptions, "dataset=a@b"), wrong: "dataset"},
		"dataset above":        {in: with(zfsOptions, "dataset=.."), wrong: "dataset"},
		"no dataset":           {in: with(zfsOptions, "dataset="), wrong: "dataset"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o, err := newOptions(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			b, err := parseBlockDevice(o)
			if tt.wrong != "" {
				if !errors.Is(err, ErrOption) || !strings.Contains(podvm.Cause(err), tt.wrong) {
					t.Fatalf("%v with cause %q, want %q", err, podvm.Cause(err), tt.wrong)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := &blockDevice{path: "/disk", filesystem: true}
			tt.want(want)
			b.mkfsOptions = append([]string(nil), b.mkfsOptions...)
			if len(b.mkfsOptions) != len(want.mkfsOptions) || strings.Join(b.mkfsOptions, " ") != strings.Join(want.mkfsOptions, " ") {
				t.Errorf("mkfs options %q, want %q", b.mkfsOptions, want.mkfsOptions)
			}
			b.mkfsOptions, want.mkfsOptions = nil, nil
			if got := *b; got.path != want.path || got.byNumber != want.byNumber || got.major != want.major || got.minor != want.minor ||
				got.encrypted != want.encrypted || got.key != want.key || got.zfs != want.zfs || got.filesystem != want.filesystem ||
				got.integrity != want.integrity || got.mapperName != want.mapperName || got.pool != want.pool || got.dataset != want.dataset {
				t.Errorf("%+v, want %+v", got, *want)
			}
		})
	}
}

func TestParseOSS(t *testing.T) {
	for name, tt := range map[string]struct {
		in    map[string]string
		wrong string
	}{
		"the least":                   {in: ossOptions},
		"encrypted":                   {in: with(ossOptions, "encrypted=gocryptfs", "encPasswd=sealed.a.b.c")},
		"no url":                      {with(ossOptions, "-url"), `"url" is missing`},
		"no readonly":                 {with(ossOptions, "-readonly"), `"readonly" is missing`},
		"bucket as option":            {with(ossOptions, "bucket=-oallow_other"), "bucket"},
		"bucket with a path":          {with(ossOptions, "bucket=a:b"), "bucket"},
		"url with an option":          {with(ossOptions, "url=https://x,allow_other"), "url"},
		"url of a file":               {with(ossOptions, "url=file:///etc/passwd"), "url"},
		"url with a password":         {with(ossOptions, "url=https://a:b@x"), "url"},
		"id of two":                   {with(ossOptions, "akId=a:b"), "akId"},
		"secret with a line":          {with(ossOptions, "akSecret=a\nbucket2:b:c"), "akSecret"},
		"no secret":                   {with(ossOptions, "akSecret="), "akSecret"},
		"encrypted, no password":      {with(ossOptions, "encrypted=gocryptfs"), "encPasswd"},
		"another password file":       {with(ossOptions, "otherOpts=-o passwd_file=/etc/shadow"), "passwd_file"},
		"hidden in a list":            {with(ossOptions, "otherOpts=-oallow_other,url=http://evil"), `"url"`},
		"a library":                   {with(ossOptions, "otherOpts=-o credlib=/tmp/x.so"), "credlib"},
		"files of the bucket in /etc": {with(ossOptions, "otherOpts=-o use_cache=/etc"), "use_cache"},
		"files of /etc go":            {with(ossOptions, "otherOpts=-o del_cache"), "del_cache"},
		"temporary files in /etc":     {with(ossOptions, "otherOpts=-o tmpdir=/etc"), "tmpdir"},
		"a report over a file":        {with(ossOptions, "otherOpts=-o set_check_cache_sigusr1=/etc/passwd"), "sigusr1"},
		"foreground":                  {with(ossOptions, "otherOpts=-f"), `"-f"`},
		"a further mount point":       {with(ossOptions, "otherOpts=/etc"), `"/etc"`},
		"an option that is cut off":   {with(ossOptions, "otherOpts=-o"), `"-o"`},
		"a name that is not an name":  {with(ossOptions, "otherOpts=-o --help"), "--help"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := newOptions(tt.in)
			if err != nil {
				t.Fatal(err)
			}
			_, err = parseOSS(o)
			if tt.wrong == "" && err != nil || tt.wrong != "" && (!errors.Is(err, ErrOption) || !strings.Contains(podvm.Cause(err), tt.wrong)) {
				t.Fatalf("%v, want %q", err, tt.wrong)
			}
			if err == nil && len(o.unread()) > 0 {
				t.Errorf("not read: %q", o.unread())
			}
		})
	}
}

// Requests that are refused before anything is touched, and what the log says of
// options nobody reads: their names.
func TestRequestsThatAreRefused(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"dir", "sys/dev/block/7:3", "sys/dev/block/7:4", "sys/dev/block/7:5", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{
		"sys/dev/block/7:3/uevent": "MAJOR=7\nDEVNAME=../../etc/passwd\n",
		"sys/dev/block/7:4/uevent": "MAJOR=7\n",
		"sys/dev/block/7:5/uevent": "DEVTYPE=disk\nDEVNAME=gone\n",
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, log := newMounter(t, root, keys{})
	luks := func(changes ...string) Request {
		return Request{VolumeType: "block-device", Options: with(luksOptions, changes...), MountPoint: "/mnt"}
	}
	at := func(point string) Request { r := luks(); r.MountPoint = point; return r }
	many := map[string]string{}
	for i := range 65 {
		many[strings.Repeat("x", i+1)] = ""
	}
	for name, tt := range map[string]struct {
		req  Request
		want error
	}{
		"no type":              {Request{Options: luksOptions, MountPoint: "/mnt"}, ErrOption},
		"another type":         {Request{VolumeType: "Block-Device", Options: luksOptions, MountPoint: "/mnt"}, ErrOption},
		"no mount point":       {at(""), ErrOption},
		"relative mount point": {at("mnt"), ErrOption},
		"the root directory":   {at("/a/../"), ErrOption},
		"a NUL":                {at("/mnt\x00"), ErrOption},
		"many options":         {Request{VolumeType: "block-device", Options: many, MountPoint: "/mnt"}, ErrOption},
		"a huge option":        {luks("key=" + strings.Repeat("x", maxValue+1)), ErrOption},
		"no such device":       {luks(), ErrDevice},
		"a directory":          {luks("devicePath=/dir"), ErrDevice},
		"a pipe":               {luks("devicePath=/fifo"), ErrDevice},
		"no such number":       {luks("deviceId=7:2"), ErrDevice},
		"a hostile name":       {luks("deviceId=7:3"), ErrDevice},
		"a number of no name":  {luks("deviceId=7:4"), ErrDevice},
		"a node that is gone":  {luks("deviceId=7:5", "topsecretname=topsecretvalue"), ErrDevice},
	} {
		t.Run(name, func(t *testing.T) {
			err := m.Mount(t.Context(), tt.req)
			if !errors.Is(err, tt.want) || podvm.Cause(err) == "" {
				t.Errorf("%v with cause %q, want %v", err, podvm.Cause(err), tt.want)
			}
		})
	}
	if s := log.String(); !strings.Contains(s, "topsecretname") || strings.Contains(s, "topsecretvalue") {
		t.Errorf("the log: %s", s)
	}
	if _, err := os.Stat(filepath.Join(root, "run")); err == nil {
		t.Error("something was written")
	}
}

func TestDeviceByNumber(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"sys/dev/block/252:16", "dev/disk"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range map[string]string{"sys/dev/block/252:16/uevent": "MAJOR=252\nDEVNAME=disk/b\n", "dev/vdb": "x"} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../vdb", filepath.Join(root, "dev/disk/b")); err != nil {
		t.Fatal(err)
	}
	m, _ := newMounter(t, root, keys{})
	for name, b := range map[string]*blockDevice{"number": {byNumber: true, major: 252, minor: 16}, "path": {path: "/dev/disk/b"}} {
		if path, number, err := m.device(b); path != filepath.Join(root, "dev/vdb") || number != 0 || err != nil {
			t.Errorf("%s: %q, %d, %v", name, path, number, err)
		}
	}
}

func TestDigestTellsRequestsApart(t *testing.T) {
	a := Request{VolumeType: "block-device", Options: luksOptions, MountPoint: "/mnt"}
	same := Request{VolumeType: "block-device", Options: maps.Clone(luksOptions), MountPoint: "/mnt/", Flags: []string{"x"}}
	if digest(a) != digest(same) {
		t.Error("equal requests differ")
	}
	keyed := Request{VolumeType: "block-device", Options: with(luksOptions, "key=a"), MountPoint: "/mnt"}
	later := Request{VolumeType: "block-device", Options: with(luksOptions, "key=a", "sourceType=encrypted"), MountPoint: "/mnt"}
	if digest(keyed) != digest(later) {
		t.Error("a volume with a key is another one once it is made")
	}
	for _, b := range []Request{
		keyed,
		{VolumeType: "block-device", Options: with(luksOptions, "sourceType=encrypted"), MountPoint: "/mnt"},
		{VolumeType: "block-device", Options: luksOptions, MountPoint: "/mnt2"},
		{VolumeType: "x", Options: luksOptions, MountPoint: "/mnt"},
	} {
		if digest(a) == digest(b) {
			t.Errorf("%v has the same digest", b)
		}
	}
}

func FuzzRequest(f *testing.F) {
	f.Add("block-device", "/mnt", "/dev/sda", "luks2", "-E lazy_journal_init -Fq", "name", "8:0")
	f.Add("block-device", "/mnt", "/dev/sda", "zfs", "", "pool", "x")
	f.Add("alibaba-cloud-oss", "/mnt", "https://x", "gocryptfs", "-o a=b -oc,d", "bucket", "id")
	f.Fuzz(func(t *testing.T, kind, point, a, b, c, d, e string) {
		if _, err := mountPoint(point); err != nil && podvm.Cause(err) == "" {
			t.Fatalf("%v without a cause", err)
		}
		o, err := newOptions(map[string]string{
			"devicePath": a, "sourceType": "empty", "encryptionType": b, "targetType": "fileSystem", "mkfsOpts": c, "mapperName": d, "pool": d, "dataset": d, "key": e,
			"akId": e, "akSecret": e, "bucket": d, "otherOpts": c, "path": a, "readonly": "", "targetPath": "", "url": a, "volumeId": "", "encrypted": b, "encPasswd": e,
		})
		if err != nil {
			return
		}
		if kind == "alibaba-cloud-oss" {
			v, err := parseOSS(o)
			if err != nil && podvm.Cause(err) == "" {
				t.Fatalf("%v without a cause", err)
			}
			if err == nil && (v.Bucket[0] == '-' || strings.Contains(v.URL, ",") || strings.Contains(v.SecretKey, ":")) {
				t.Fatalf("%+v", v)
			}
			return
		}
		v, err := parseBlockDevice(o)
		if err != nil {
			if !errors.Is(err, ErrOption) || podvm.Cause(err) == "" {
				t.Fatalf("%v", err)
			}
			return
		}
		if v.path[0] != '/' || strings.HasPrefix(v.mapperName, "-") || strings.ContainsAny(v.mapperName+v.pool+v.dataset, "/ \n") {
			t.Fatalf("%+v", v)
		}
	})
}

func TestMountPoint(t *testing.T) {
	for point, want := range map[string]string{
		"/run/kata-containers/image/": "/run/kata-containers/image", "/run/cloud-volumes/a": "/run/cloud-volumes/a",
		"/run/confidential-containers-not": "/run/confidential-containers-not",
		"":                                 "", "/": "", "/a/..": "", "a": "", "/a\n": "",
		"/run/confidential-containers": "", "/run/confidential-containers/cdh/sealed-secret": "",
		"/run//x/../confidential-containers/cdh/kbs": "",
	} {
		got, err := mountPoint(point)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", point, got, err)
		}
	}
}
