package userdata

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/userdata/cidata"
)

// User data that is no cloud-config is tried until the time is up: it may have
// been read too early.
func TestUserDataThatIsNotACloudConfig(t *testing.T) {
	for name, tt := range map[string]struct{ in, says string }{
		"not YAML":          {"{[", "not YAML"},
		"extra key":         {podUserData(t) + "runcmd:\n  - id\n", `the key "runcmd" is not one of`},
		"extra entry key":   {podUserData(t) + "    owner: root\n", `the key "owner" is not one of`},
		"empty":             {"", "it is empty"},
		"base64 by mistake": {inBase64(podUserData(t)), "not a mapping"},
		"gzip, as AWS may":  {"\x1f\x8b\x08\x00", "not YAML"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.put(mountedFile, tt.in)
			m.refused(ErrCloudConfig, tt.says, "3 tries")
			if !strings.Contains(m.log.String(), "level=WARN msg=\"There is no usable user data yet\" source=file try=1") {
				t.Error(m.log)
			}
		})
	}
}

// What is not on the list is left out and said, and nothing else changes.
func TestUserDataWithDisallowedPaths(t *testing.T) {
	paths := []string{
		"/etc/shadow", policyFile, digestFile, dir + "/../../etc/shadow", dir + "/./aa.toml", dir + "//aa.toml",
		dir + "/aa.toml/", "run/peerpod/aa.toml", dir + "/daemon.json", dir + "/sub/../cdh.toml", `"/run/peerpod/aa.toml\0"`,
	}
	m := newMachine(t)
	text := podUserData(t)
	for _, p := range paths {
		text += "  - path: " + p + "\n    content: hunter2\n"
	}
	m.put(mountedFile, text)
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if got := m.files(); !maps.Equal(got, podFiles(t)) {
		t.Errorf("got %q", got)
	}
	if exists(m.conf.Host, "/etc") {
		t.Error("something is in /etc")
	}
	said := m.log.String()
	if n := strings.Count(said, "is not allowed in write_files"); n != len(paths) || strings.Contains(said, "hunter2") {
		t.Errorf("said %d times:\n%s", n, said)
	}
}

// The last of several entries counts, as upstream's overwrites.
func TestUserDataNamesAFileTwice(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, cloudConfig(forwarderFile, "{}\n", forwarderFile, forwarderText))
	if err := m.run(); err != nil || m.files()["apf.json"] != forwarderText {
		t.Errorf("%v, %q", err, m.files())
	}
}

func bomb(t *testing.T) string {
	t.Helper()
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		t.Fatal(err)
	}
	for range 16 { // twice the cap
		if _, err := z.Write(bytes.Repeat([]byte("#"), 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(packed.Bytes())
}

// Init data that is wrong stays so: no second try.
func TestInitDataThatIsNotUsable(t *testing.T) {
	good := encoded(t, document)
	for name, tt := range map[string]struct {
		in, says string
		also     error
	}{
		"not base64":       {in: "hunter2!", says: "not base64"},
		"empty":            {in: "", says: "not gzip"},
		"not gzip":         {in: inBase64(document), says: "not gzip"},
		"cut":              {in: good[:len(good)/8*4], says: "ends too early"},
		"gzip bomb":        {in: bomb(t), says: "more than 8388608 bytes", also: podvm.ErrTooLarge},
		"not TOML":         {in: encoded(t, "algorithm = "), says: "line 1"},
		"wrong algorithm":  {in: encoded(t, strings.Replace(document, "sha256", "md5", 1)), says: `algorithm "md5": want sha256, sha384 or sha512`},
		"capitals":         {in: encoded(t, strings.Replace(document, "sha256", "SHA256", 1)), says: `algorithm "SHA256"`},
		"no algorithm":     {in: encoded(t, "version = \"0.1.0\"\n"), says: `algorithm ""`},
		"numbers as files": {in: encoded(t, "algorithm = \"sha256\"\n[data]\n\"aa.toml\" = 7\n"), says: "not the expected TOML"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.putDisk(cidata.Label, cloudConfig(forwarderFile, forwarderText, initDataFile, tt.in))
			m.refused(initdata.ErrInitData, tt.says)
			if tt.also != nil {
				m.refused(tt.also)
			}
			if strings.Contains(m.log.String(), "no usable user data yet") {
				t.Error("it was tried again")
			}
		})
	}
}

// Keys are compared as they are: upstream joins and cleans them first.
func TestInitDataWithDotDotKeys(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, cloudConfig(initDataFile, encoded(t, `algorithm = "sha384"
[data]
"sub/../cdh.toml" = "hunter2"
"../../etc/shadow" = "hunter2"
"/run/peerpod/cdh.toml" = "hunter2"
"./cdh.toml" = "hunter2"
"apf.json" = "hunter2"
"CDH.toml" = "hunter2"
"policy.rego" = "package p"
`)))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	got := m.files()
	if len(got) != 4 || got["policy.rego"] != "package p" || len(got["initdata.digest"]) != 96 {
		t.Errorf("got %q", got)
	}
	if n := strings.Count(m.log.String(), "is not allowed in init data"); n != 6 || strings.Contains(m.log.String(), "hunter2") {
		t.Errorf("said %d times: %s", n, m.log)
	}
}

func TestUnmeasuredConfiguration(t *testing.T) {
	onlyAgent := encoded(t, "algorithm = \"sha256\"\n[data]\n\"aa.toml\" = \"\"\n")
	for name, tt := range map[string]struct {
		setup   func(*machine)
		path    string
		refused bool
	}{
		"cdh.toml beside init data": {func(m *machine) { m.put(mountedFile, cloudConfig(hubFile, hubText, initDataFile, onlyAgent)) }, hubFile, true},
		"cdh.toml alone":            {func(m *machine) { m.put(mountedFile, cloudConfig(hubFile, hubText)) }, hubFile, true},
		"aa.toml, init data has none": {func(m *machine) {
			m.put(mountedFile, cloudConfig(agentFile, agentText, initDataFile, encoded(t, "algorithm = \"sha256\"\n")))
		}, agentFile, true},
		"cdh.toml that others wrote": {func(m *machine) { m.put(forwarderFile, "{}"); m.put(hubFile, hubText) }, hubFile, true},
		"all in init data":           {func(m *machine) { m.put(mountedFile, podUserData(t)) }, "", false},
		"none at all":                {func(m *machine) { m.put(mountedFile, cloudConfig(forwarderFile, "{}")) }, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			tt.setup(m)
			m.conf.MeasuredOnly = true
			if tt.refused {
				m.refused(ErrUnmeasured, tt.path)
			}
			m.conf.MeasuredOnly = !tt.refused
			if err := m.run(); err != nil {
				t.Fatal(err)
			}
			const said = "level=WARN msg=\"A file is not part of the init data: the host may change it and no evidence shows that\" path="
			if strings.Contains(m.log.String(), said+tt.path) != tt.refused {
				t.Error(m.log)
			}
			if err := m.run(); err != nil { // once more, with the files in place
				t.Error(err)
			}
		})
	}
}

// A place that cannot be written leaves nothing behind, also when it is the last.
func TestFilesThatCannotBePutInPlace(t *testing.T) {
	for _, path := range []string{policyFile, digestFile, agentFile} {
		t.Run(path, func(t *testing.T) {
			m := newMachine(t)
			m.put(mountedFile, podUserData(t))
			m.put(path+"/in/the/way", "")
			m.refused(unix.EEXIST, "putting "+path+" in place")
		})
	}
	t.Run("the directory", func(t *testing.T) {
		m := newMachine(t)
		m.put(mountedFile, podUserData(t))
		m.put("/run/peerpod", "")
		if err := m.run(); !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("got %v", err)
		}
	})
}

func TestTwoRunsAtOnce(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, podUserData(t))
	m.put(dir+"/"+staging+"123/aa.toml", "of the other run")
	other, err := os.Open(m.conf.Host.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	m.refused(unix.EWOULDBLOCK, "another run is at it")
	other.Close()
	if err := m.run(); err != nil {
		t.Error(err)
	}
}

// The attack: who may upload user data, and nothing else, has a secret of the VM
// told on the console, or the VM wait for ever.
func TestUploadThatIsNotAPlainFile(t *testing.T) {
	for name, make := range map[string]func(path, secret string) error{
		"link":          func(path, secret string) error { return os.Symlink(secret, path) },
		"dangling link": func(path, _ string) error { return os.Symlink("/nowhere", path) },
		"pipe":          func(path, _ string) error { return unix.Mkfifo(path, 0o600) },
		"directory":     func(path, _ string) error { return os.Mkdir(path, 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.put(mountedFile+"/../secret", "hunter2: x\n")
			path := m.conf.Host.Path(mountedFile)
			if err := make(path, m.conf.Host.Path("/media/cidata/secret")); err != nil {
				t.Fatal(err)
			}
			m.refused(errNoSource)
			if strings.Contains(m.log.String(), "hunter2") {
				t.Error(m.log)
			}
		})
	}
}

// The kernel tells in which order files appear: whole, and aa.toml last.
func TestFilesAppearInOrder(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, podUserData(t))
	at := m.conf.Host.Path(dir)
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, at, unix.IN_MOVED_TO|unix.IN_MODIFY); err != nil {
		t.Fatal(err)
	}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	events := make([]byte, 16<<10)
	n, err := unix.Read(fd, events)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for b := events[:n]; len(b) >= unix.SizeofInotifyEvent; {
		size := unix.SizeofInotifyEvent + int(b[12]) // the length of a name is below 256
		if b[4]&unix.IN_MODIFY != 0 {
			t.Error("a file changed in place")
		}
		got = append(got, string(bytes.TrimRight(b[unix.SizeofInotifyEvent:size], "\x00")))
		b = b[size:]
	}
	want := "policy.rego auth.json cdh.toml apf.json initdata initdata.digest scratch-space.marker aa.toml"
	if strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A wait ends with its time, or with the context.
func TestPause(t *testing.T) {
	if err := pause(t.Context(), time.Nanosecond); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := pause(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
