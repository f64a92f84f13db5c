package userdata

import (
	"context"
	"encoding/base64"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/podvm"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine is a pod VM that starts.
type machine struct {
	t    *testing.T
	conf Config
	// tries is how many there is time for.
	tries int
	// paused is called before each try but the first, with its number.
	paused func(int)
	// request is the time of a request, if it matters.
	request time.Duration
	log     *strings.Builder

	one   sync.Mutex
	asked []string // what the metadata service was asked
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	var log strings.Builder
	return &machine{t: t, tries: 3, log: &log, request: requestTimeout, conf: Config{
		Host: podvm.Host{
			Root: t.TempDir(), IMDS: "http://127.0.0.1:1",
			LookupEnv: func(string) (string, bool) { return "", false },
		},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	}}
}

// requests returns what the metadata service was asked so far.
func (m *machine) requests() []string {
	m.one.Lock()
	defer m.one.Unlock()
	return slices.Clone(m.asked)
}

// put writes a file of the machine.
func (m *machine) put(path, content string) {
	m.t.Helper()
	path = m.conf.Host.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// cloud makes the machine one of a cloud, as the firmware tells it, whose
// metadata service is serve.
func (m *machine) cloud(name string, serve http.HandlerFunc) {
	m.t.Helper()
	for file, text := range map[string]map[string]string{
		Azure: {
			"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine",
			"chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77",
		},
		AWS:     {"sys_vendor": "Amazon EC2", "product_name": "m6a.large"},
		GCP:     {"sys_vendor": "Google", "product_name": "Google Compute Engine"},
		Alibaba: {"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"},
		"kvm":   {"sys_vendor": "QEMU", "product_name": "Standard PC (Q35 + ICH9, 2009)"},
	}[name] {
		m.put(dmi+file, text+"\n")
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.one.Lock()
		m.asked = append(m.asked, r.Method+" "+r.URL.String())
		m.one.Unlock()
		serve(w, r)
	}))
	m.t.Cleanup(s.Close)
	m.conf.Host.IMDS = s.URL
}

// run provisions the machine. There is time for m.tries tries, whatever the
// clock says.
func (m *machine) run() error {
	m.t.Helper()
	p := newProvisioner(m.conf)
	p.http.requestTime = m.request
	p.http.tokenTime = m.request
	count := 1
	p.pause = func(ctx context.Context, _ time.Duration) error {
		if count++; count > m.tries {
			return context.DeadlineExceeded
		}
		if m.paused != nil {
			m.paused(count)
		}
		return ctx.Err()
	}
	return p.run(m.t.Context())
}

// files returns what is in /run/peerpod, by name.
func (m *machine) files() map[string]string {
	m.t.Helper()
	out := map[string]string{}
	at := m.conf.Host.Path(dir)
	err := filepath.WalkDir(at, func(path string, d fs.DirEntry, err error) error {
		switch {
		case os.IsNotExist(err):
			return nil
		case err != nil || path == at:
			return err
		case d.IsDir():
			out[path[len(at)+1:]+"/"] = ""
			return nil
		}
		b, err := os.ReadFile(path)
		out[path[len(at)+1:]] = string(b)
		return err
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return out
}

// cloudConfig returns a document in the host's form: paths and contents in turns.
func cloudConfig(files ...string) string {
	var b strings.Builder
	b.WriteString("#cloud-config\n\nwrite_files:\n")
	for i := 0; i < len(files); i += 2 {
		b.WriteString("  - path: " + files[i] + "\n")
		if files[i+1] == "" {
			continue
		}
		b.WriteString("    content: |\n")
		for line := range strings.SplitSeq(strings.TrimSuffix(files[i+1], "\n"), "\n") {
			b.WriteString("      " + line + "\n")
		}
	}
	return b.String()
}

// encoded returns init data as the host gives it.
func encoded(t *testing.T, text string) string {
	t.Helper()
	b, err := initdata.Encode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

const (
	forwarderText = "{\"pod-name\":\"app\"}\n"
	agentText     = "[token_configs.kbs]\nurl = \"https://kbs.example\"\n"
	hubText       = "[kbc]\nname = \"cc_kbc\"\n"
	policyText    = "package agent_policy\n"

	document = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n" +
		"\"aa.toml\" = '''\n" + agentText + "'''\n\"cdh.toml\" = '''\n" + hubText + "'''\n\"policy.rego\" = '''\n" + policyText + "'''\n"
	// documentDigest is sha256sum's of document.
	documentDigest = "94e49c27282679ffcb7424e3026179d1387550e15cb3893edf3370252cc20026"
	dummyDigest    = "adb48cc14fea9403d3d51f3b5f5068fd4d80445a14e94f1b3d5dbabaad66478d"
)

// podUserData is what a host sends for a pod with init data.
func podUserData(t *testing.T) string {
	return cloudConfig(forwarderFile, forwarderText, authFile, "{}\n", scratchFile, "", initDataFile, encoded(t, document))
}

// podFiles is what becomes of podUserData.
func podFiles(t *testing.T) map[string]string {
	return map[string]string{
		"apf.json": forwarderText, "auth.json": "{}\n", "scratch-space.marker": "",
		"initdata": encoded(t, document), "initdata.digest": documentDigest,
		"aa.toml": agentText, "cdh.toml": hubText, "policy.rego": policyText,
	}
}

func inBase64(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
