package userdata

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/podvm/testenv"
	"github.com/sealpod/sealpod/podvm/userdata/cidata"
)

// serve answers one request line with a body, if the headers are there, and all
// others with 404.
func serve(t *testing.T, line, body string, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.Method+" "+r.URL.String() != line {
			http.NotFound(w, r)
			return
		}
		for i := 0; i < len(headers); i += 2 {
			if r.Header.Get(headers[i]) != headers[i+1] {
				t.Errorf("%s without %s", line, headers[i])
				http.Error(w, "no", http.StatusBadRequest)
				return
			}
		}
		_, _ = w.Write([]byte(body))
	}
}

const (
	azureLine   = "GET /metadata/instance/compute/userData?api-version=2021-01-01&format=text"
	awsLine     = "GET /latest/user-data"
	tokenLine   = "PUT /latest/api/token"
	gcpLine     = "GET /computeMetadata/v1/instance/attributes/user-data"
	alibabaLine = awsLine
)

func TestProvisionFromEachSource(t *testing.T) {
	for name, tt := range map[string]struct {
		setup func(*machine)
		asked []string
	}{
		"a mounted disk": {func(m *machine) { m.put(mountedFile, podUserData(t)) }, nil},
		"a disk":         {func(m *machine) { m.putDisk("cidata", podUserData(t)) }, nil},
		"Azure": {func(m *machine) {
			m.cloud(Azure, serve(t, azureLine, inBase64(podUserData(t)), "Metadata", "true"))
		}, []string{azureLine}},
		"AWS": {func(m *machine) {
			give := serve(t, awsLine, podUserData(t), "X-aws-ec2-metadata-token", "tok")
			token := serve(t, tokenLine, "tok", "X-aws-ec2-metadata-token-ttl-seconds", "60")
			m.cloud(AWS, func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPut {
					token(w, r)
					return
				}
				give(w, r)
			})
		}, []string{tokenLine, awsLine}},
		"AWS without tokens": {func(m *machine) { m.cloud(AWS, serve(t, awsLine, podUserData(t))) }, []string{tokenLine, awsLine}},
		"Google's cloud": {func(m *machine) {
			m.cloud(GCP, serve(t, gcpLine, inBase64(podUserData(t)), "Metadata-Flavor", "Google"))
		}, []string{gcpLine}},
		"Alibaba Cloud": {func(m *machine) { m.cloud(Alibaba, serve(t, alibabaLine, podUserData(t))) }, []string{alibabaLine}},
		"cloud-init": {func(m *machine) {
			m.put(forwarderFile, forwarderText)
			m.put(authFile, "{}\n")
			m.put(scratchFile, "")
			m.put(initDataFile, encoded(t, document))
		}, nil},
		"a source that was named": {func(m *machine) {
			m.cloud("kvm", serve(t, alibabaLine, podUserData(t)))
			m.conf.Source = Alibaba
		}, []string{alibabaLine}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			tt.setup(m)
			if err := m.run(); err != nil {
				t.Fatal(err)
			}
			if got, want := m.files(), podFiles(t); !maps.Equal(got, want) {
				t.Errorf("got %q\nwant %q", got, want)
			}
			if !slices.Equal(m.requests(), tt.asked) {
				t.Errorf("asked %q", m.requests())
			}
		})
	}
}

// putDisk gives the machine a disk with this label.
func (m *machine) putDisk(label, userData string) {
	m.t.Helper()
	from := m.t.TempDir()
	if err := os.WriteFile(filepath.Join(from, cidata.FileName), []byte(userData), 0o600); err != nil {
		m.t.Fatal(err)
	}
	to := m.conf.Host.Path(filepath.Join(labels, label))
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		m.t.Fatal(err)
	}
	cmd := exec.CommandContext(m.t.Context(), testenv.Tool(m.t, "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-J", "-V", label, "-o", to, from)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, out)
	}
}

func TestProvisionModes(t *testing.T) {
	m := newMachine(t)
	m.put(authFile, "{}") // as tmpfiles leaves it
	m.put(mountedFile, podUserData(t))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]fs.FileMode{
		forwarderFile: 0o600, authFile: 0o600,
		agentFile: 0o644, hubFile: 0o644, policyFile: 0o644, initDataFile: 0o644, digestFile: 0o644, scratchFile: 0o644,
		dir: 0o755 | fs.ModeDir,
	} {
		if st, err := os.Stat(m.conf.Host.Path(path)); err != nil || st.Mode() != want {
			t.Errorf("%s: %v, %v, want %v", path, st.Mode(), err, want)
		}
	}
}

// Without init data the VM is known by the digest that upstream gives it, and the
// agent is started by an empty file, whatever the host wrote there.
func TestProvisionWithoutInitData(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, cloudConfig(forwarderFile, forwarderText, agentFile, "[unmeasured]\n"))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	got := m.files()
	if len(dummy) != 66 || got["initdata.digest"] != dummyDigest || got["aa.toml"] != "" {
		t.Errorf("got %q", got)
	}
	if _, ok := got["aa.toml"]; !ok || len(got) != 4 {
		t.Errorf("got %q", got)
	}
	if !strings.Contains(m.log.String(), "gives way to that of the init data") {
		t.Error(m.log)
	}
}

func TestProvisionStartsTheAgentWhateverInitDataHas(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, cloudConfig(initDataFile, encoded(t, "algorithm = \"sha512\"\n")))
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	got := m.files()
	if text, ok := got["aa.toml"]; !ok || text != "" || len(got["initdata.digest"]) != 128 {
		t.Errorf("got %q", got)
	}
}

func TestProvisionTwiceChangesNothing(t *testing.T) {
	m := newMachine(t)
	m.put(mountedFile, podUserData(t))
	m.put(dir+"/"+staging+"123/aa.toml", "left by a run that was killed")
	for range 2 {
		if err := m.run(); err != nil {
			t.Fatal(err)
		}
		if got, want := m.files(), podFiles(t); !maps.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	}
}

// refused runs the machine and checks that it ends with a failure that says so,
// on the console too, and that no file is new.
func (m *machine) refused(want error, says ...string) {
	m.t.Helper()
	before := m.files()
	err := m.run()
	if !errors.Is(err, want) {
		m.t.Errorf("got %v", err)
	}
	for _, s := range says {
		if err == nil || !strings.Contains(err.Error(), s) {
			m.t.Errorf("%q does not say %q", err, s)
		}
	}
	if got := m.files(); !maps.Equal(got, before) {
		m.t.Errorf("files are there: %q", got)
	}
}

func TestMetadataServiceHangs(t *testing.T) {
	for _, cloud := range []string{Azure, AWS, GCP, Alibaba} {
		t.Run(cloud, func(t *testing.T) {
			m := newMachine(t)
			m.request = 20 * time.Millisecond
			m.cloud(cloud, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
			m.refused(context.DeadlineExceeded, "3 tries", "no answer in time")
		})
	}
}

// The time for everything ends a request that has time left.
func TestMetadataServiceHangsLongerThanThereIsTime(t *testing.T) {
	m := newMachine(t)
	m.conf.Timeout = 50 * time.Millisecond
	m.tries = 1000
	m.cloud(Azure, func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	m.refused(context.DeadlineExceeded, "nothing usable in 50ms", "1 tries")
}

func TestMetadataServiceBodyHangs(t *testing.T) {
	m := newMachine(t)
	m.request = 20 * time.Millisecond
	m.cloud(Alibaba, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte("write_files:\n"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	m.refused(context.DeadlineExceeded, "no answer in time")
}

// More tries than upstream's ten are made when there is time.
func TestMetadataServiceAnswers500Forever(t *testing.T) {
	m := newMachine(t)
	m.tries = 25
	m.cloud(Azure, func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "overloaded", http.StatusInternalServerError)
	})
	m.refused(context.DeadlineExceeded, "25 tries", "500 Internal Server Error")
	if len(m.requests()) != 25 || strings.Count(m.log.String(), "level=WARN msg=\"There is no usable user data yet\" source=azure") != 25 {
		t.Errorf("asked %d times, said %s", len(m.requests()), m.log)
	}
}

func TestMetadataServiceAnswersLate(t *testing.T) {
	for name, early := range map[string]http.HandlerFunc{
		"404":           http.NotFound,
		"empty":         func(http.ResponseWriter, *http.Request) {},
		"half of it":    func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(inBase64("write_files: ["))) },
		"a broken line": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			m.tries = 20
			late := serve(t, azureLine, inBase64(podUserData(t)))
			m.cloud(Azure, func(w http.ResponseWriter, r *http.Request) {
				if len(m.requests()) < 15 {
					early(w, r)
					return
				}
				late(w, r)
			})
			if err := m.run(); err != nil {
				t.Fatal(err)
			}
			if got := m.files(); !maps.Equal(got, podFiles(t)) || len(m.requests()) != 15 {
				t.Errorf("got %q after %d requests", got, len(m.requests()))
			}
		})
	}
}

func TestMetadataServiceSendsElsewhere(t *testing.T) {
	m := newMachine(t)
	m.cloud(Azure, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/other" {
			t.Error("a redirect was followed")
		}
		http.Redirect(w, r, "/other", http.StatusFound)
	})
	m.refused(context.DeadlineExceeded, "302 Found")
}

// A disk may be found late, and an upload may be half there.
func TestDiskComesLate(t *testing.T) {
	m := newMachine(t)
	m.tries = 4
	m.paused = func(try int) {
		if try == 2 {
			m.put(mountedFile, "write_files: [")
			return
		}
		m.put(mountedFile, podUserData(t))
	}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if got := m.files(); !maps.Equal(got, podFiles(t)) {
		t.Errorf("got %q", got)
	}
}

// An upload may be half there in a way that is good YAML: without the init data,
// which would be measured as missing for as long as the VM runs.
func TestUploadIsHalfThere(t *testing.T) {
	m := newMachine(t)
	m.tries = 5
	whole := podUserData(t)
	m.put(mountedFile, whole[:strings.Index(whole, "- path: "+initDataFile)])
	m.paused = func(try int) {
		if try == 2 {
			m.put(mountedFile, whole)
		}
	}
	if err := m.run(); err != nil {
		t.Fatal(err)
	}
	if got := m.files(); !maps.Equal(got, podFiles(t)) {
		t.Errorf("got %q", got)
	}
	m.tries, m.paused = 20, func(try int) { m.put(mountedFile, whole+strings.Repeat("#", try)) }
	m.refused(errUpload)
}

func TestWrongISOLabel(t *testing.T) {
	m := newMachine(t)
	m.cloud("kvm", func(http.ResponseWriter, *http.Request) {})
	m.putDisk("config-2", podUserData(t))
	m.refused(errNoSource, "no disk with the label cidata (there are: config-2)", `its vendor is "QEMU"`, "nothing usable in 3m0s")
	if len(m.requests()) != 0 {
		t.Errorf("asked %q on a machine of no cloud", m.requests())
	}
}

func TestDiskIsNotAnISO(t *testing.T) {
	m := newMachine(t)
	m.put(filepath.Join(labels, cidata.Label), string(make([]byte, 1<<20)))
	m.refused(cidata.ErrFormat)
}

func TestUnknownSource(t *testing.T) {
	m := newMachine(t)
	m.conf.Source = "floppy"
	m.refused(errNoSource, "want one of auto, file")
}

func TestProvisionIsCalledOff(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	m := newMachine(t)
	if err := Provision(ctx, m.conf); !errors.Is(err, context.Canceled) || len(m.files()) != 0 {
		t.Errorf("got %v", err)
	}
}

// Large user data is taken from a disk, up to the cap.
func TestUserDataOf64KiBAndMore(t *testing.T) {
	for name, tt := range map[string]struct {
		size int
		fits bool
	}{
		"64 KiB and one": {64<<10 + 1, true},
		"1 MiB":          {1 << 20, true},
		"1 MiB and one":  {1<<20 + 1, false},
	} {
		text := podUserData(t)
		text += strings.Repeat("#", tt.size-len(text))
		for source, setup := range map[string]func(*machine){
			"file":  func(m *machine) { m.put(mountedFile, text) },
			"disk":  func(m *machine) { m.putDisk("cidata", text) },
			Azure:   func(m *machine) { m.cloud(Azure, serve(t, azureLine, inBase64(text))) },
			Alibaba: func(m *machine) { m.cloud(Alibaba, serve(t, alibabaLine, text)) },
		} {
			t.Run(name+" "+source, func(t *testing.T) {
				m := newMachine(t)
				setup(m)
				if !tt.fits {
					m.refused(context.DeadlineExceeded, "too large: more than 1048576 bytes")
					return
				}
				if err := m.run(); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}

func TestMetadataServiceSendsWithoutEnd(t *testing.T) {
	m := newMachine(t)
	m.tries = 1
	m.cloud(Azure, func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			if _, err := w.Write(bytes.Repeat([]byte("A"), 1<<16)); err != nil {
				return
			}
		}
	})
	m.refused(context.DeadlineExceeded, "too large")
}
