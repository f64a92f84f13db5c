package attester

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// machine makes a file tree in place of a machine's and returns it as a host.
// A name that ends in / is a directory.
func machine(t *testing.T, env map[string]string, files map[string]string) podvm.Host {
	t.Helper()
	root, err := os.MkdirTemp("", "m") // short: it may hold a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	for name, content := range files {
		path := filepath.Join(root, name)
		dir := filepath.Dir(path)
		if strings.HasSuffix(name, "/") {
			dir = path
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if dir == path {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return podvm.Host{Root: root, LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }}
}

func TestDetect(t *testing.T) {
	tests := map[string]struct {
		env     map[string]string
		files   map[string]string
		allow   []string
		want    string
		devices []string
		err     error
		says    string // in the error or the log
	}{
		"nothing is sample, at WARN":     {want: "sample", says: "level=WARN msg=\"No TEE is used"},
		"tdx device":                     {files: map[string]string{"/dev/tdx_guest": ""}, want: "tdx"},
		"occlum":                         {env: map[string]string{"OCCLUM": ""}, err: ErrNoAttester, says: "sgx"},
		"gramine":                        {files: map[string]string{"/dev/attestation/attestation_type": "dcap"}, err: ErrNoAttester, says: "sgx"},
		"gramine without attestation":    {files: map[string]string{"/dev/attestation/attestation_type": "none"}, want: "sample"},
		"snp":                            {files: map[string]string{"/sys/devices/platform/sev-guest/": ""}, want: "snp"},
		"csv":                            {files: map[string]string{"/dev/csv-guest": ""}, err: ErrNoAttester, says: "csv"},
		"tdx comes before snp":           {files: map[string]string{"/dev/tdx_guest": "", "/sys/devices/platform/sev-guest/": ""}, want: "tdx"},
		"report directory without TEE":   {files: map[string]string{tsmReports + "/": ""}, want: "sample"},
		"a tpm alone changes nothing":    {files: map[string]string{"/dev/tpmrm0": "", "/dev/tpm0": ""}, want: "sample"},
		"sample device":                  {env: map[string]string{"ENABLE_SAMPLE_DEVICE": "0"}, want: "sample", devices: []string{"sampledevice"}},
		"sample device not allowed":      {env: map[string]string{"ENABLE_SAMPLE_DEVICE": "1"}, allow: []string{"sample"}, want: "sample"},
		"sample not allowed":             {allow: []string{"tdx", "snp"}, err: ErrNoTEE, says: "no allowed TEE"},
		"found but left out of the list": {files: map[string]string{"/dev/tdx_guest": ""}, allow: []string{"sample"}, want: "sample", says: "passed over"},
		"left out, and nothing else":     {files: map[string]string{"/dev/tdx_guest": ""}, allow: []string{"snp"}, err: ErrNoTEE},
		"tdx left out, snp used":         {files: map[string]string{"/dev/tdx_guest": "", "/sys/devices/platform/sev-guest/": ""}, allow: []string{"snp"}, want: "snp", says: "passed over"},
		"list with an unknown name":      {allow: []string{"sample", "sevsnp"}, err: ErrAllowList, says: "sevsnp"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			host := machine(t, tt.env, tt.files)
			s, err := Detect(t.Context(), Options{Host: host, Allow: tt.allow, Log: slog.New(slog.NewTextHandler(&log, nil))})
			if !errors.Is(err, tt.err) {
				t.Fatalf("error %v, want %v", err, tt.err)
			}
			if err != nil {
				log.WriteString(err.Error())
			}
			if !strings.Contains(log.String(), tt.says) {
				t.Errorf("%q does not say %q", log.String(), tt.says)
			}
			if left, err := os.ReadDir(host.Path(tsmReports)); err == nil && len(left) > 0 {
				t.Errorf("report entries stay behind: %v", left)
			}
			if tt.err != nil {
				return
			}
			if d := cmp.Diff(append([]string{tt.want}, tt.devices...), append([]string{s.TEE()}, s.DeviceTEEs()...)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestDetectStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Detect(ctx, Options{Host: machine(t, nil, nil)}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// azure is a machine whose TPM has nothing but the report of a confidential VM,
// or not even that.
func azure(t *testing.T, report []byte) podvm.Host {
	t.Helper()
	host := machine(t, nil, map[string]string{"/dev/": ""})
	hooks := []vtpmtest.Hook{func([]byte) []byte { return vtpmtest.Frame(0x18b, false, nil) }} // TPM_RC_HANDLE
	if report != nil {
		hooks = append([]vtpmtest.Hook{vtpmtest.ReadOnlyNV(0x01400001, len(report), func() []byte { return report })}, hooks...)
	}
	vtpmtest.Listen(t, host.Path("/dev/tpmrm0"), hooks...)
	return host
}

func TestDetectAzure(t *testing.T) {
	report := func(magic string, kind byte, size int) []byte {
		r := make([]byte, max(size, 1238))
		copy(r, magic)
		le := binary.LittleEndian
		le.PutUint32(r[8:], 1238)
		le.PutUint32(r[1216:], 22)
		copy(r[1220:], []byte{1, 0, 0, 0, kind, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, '{', '}'})
		return r[:size]
	}
	tests := map[string]struct {
		report []byte
		want   string
		says   string // in the log
	}{
		"TDX":               {report("HCLA", 4, 2600), "az-tdx-vtpm", ""},
		"SNP":               {report("HCLA", 2, 2600), "az-snp-vtpm", ""},
		"ordinary TPM":      {nil, "sample", ""},
		"other report type": {report("HCLA", 3, 2600), "sample", "report type 3"},
		"other magic":       {report("XXXX", 4, 2600), "sample", "magic"},
		"short index":       {report("HCLA", 4, 64), "sample", "64 bytes"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			s, err := Detect(t.Context(), Options{Host: azure(t, tt.report), Log: slog.New(slog.NewTextHandler(&log, nil))})
			if err != nil || s.TEE() != tt.want {
				t.Fatalf("got %v, %v", s, err)
			}
			if !strings.Contains(log.String(), tt.says) {
				t.Errorf("%q does not say %q", log.String(), tt.says)
			}
			if warned := strings.Contains(log.String(), "Azure"); warned != (tt.says != "") {
				t.Errorf("says %q", log.String())
			}
		})
	}
}

func TestDetectTPM(t *testing.T) {
	p := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	host := p.Machine(t)
	var log strings.Builder
	o := Options{Host: host, Log: slog.New(slog.NewTextHandler(&log, nil))}
	if s, err := Detect(t.Context(), o); err != nil || s.TEE() != "sample" {
		t.Errorf("a TPM without a key: %v, %v", s, err)
	}
	p.Key(t, 0x81010002)
	if s, err := Detect(t.Context(), o); err != nil || s.TEE() != "tpm" || !strings.Contains(log.String(), "no TEE vouches for") {
		t.Errorf("%v, %v, %s", s, err, log.String())
	}
	o.Allow = []string{"snp"}
	if s, err := Detect(t.Context(), o); !errors.Is(err, ErrNoTEE) {
		t.Errorf("tpm not allowed: %v, %v", s, err)
	}
	o.Allow, log = nil, strings.Builder{}
	o.Host.LookupEnv = func(k string) (string, bool) { return "0x81010003", k == "AA_TPM_AK_HANDLE" }
	if s, err := Detect(t.Context(), o); err != nil || s.TEE() != "sample" || !strings.Contains(log.String(), "cannot be used for evidence") {
		t.Errorf("a key that is not there: %v, %v, %s", s, err, log.String())
	}
}

func TestDetectGPU(t *testing.T) {
	device := func(vendor, class string) map[string]string {
		const dir = "/sys/bus/pci/devices/0001:00:00.0/"
		return map[string]string{dir + "vendor": vendor + "\n", dir + "class": class + "\n"}
	}
	for name, tt := range map[string]struct {
		files map[string]string
		gpu   bool
	}{
		"H100":                {device("0x10de", "0x030200"), true},
		"graphics card":       {device("0x10de", "0x030000"), true},
		"driver only":         {map[string]string{"/proc/driver/nvidia/": ""}, true},
		"sound of the vendor": {device("0x10de", "0x040300"), false},
		"another vendor":      {device("0x1002", "0x030200"), false},
		"a bare entry":        {map[string]string{"/sys/bus/pci/devices/0001:00:00.0/": ""}, false},
		"nothing":             {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			var log strings.Builder
			o := Options{Host: machine(t, nil, tt.files), Log: slog.New(slog.NewTextHandler(&log, nil))}
			for _, allow := range [][]string{nil, {"sample"}} {
				log.Reset()
				o.Allow = allow
				if s, err := Detect(t.Context(), o); err != nil || len(s.Devices) != 0 || strings.Contains(log.String(), "NVIDIA") != tt.gpu {
					t.Errorf("allowed %v: %v, %s", allow, err, log.String())
				}
			}
			o.Allow = []string{"sample", "nvidia"}
			if _, err := Detect(t.Context(), o); errors.Is(err, ErrNoAttester) != tt.gpu || tt.gpu && !strings.Contains(podvm.Cause(err), "NVIDIA") {
				t.Errorf("asked for: %v", err)
			}
		})
	}
}

func TestUnprivileged(t *testing.T) { testenv.RerunUnprivileged(t) }

// What may not be looked at is not taken for what is not there.
func TestDetectSaysWhatItMayNotLookAt(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may look at everything: TestUnprivileged runs this")
	}
	for name, files := range map[string]map[string]string{
		"/dev":                 {"/dev/tdx_guest": "", "/dev/tpmrm0": ""},
		"/sys/devices":         {"/sys/devices/platform/sev-guest/": ""},
		tsmReports:             {tsmReports + "/": ""},
		"/sys/bus/pci/devices": {"/sys/bus/pci/devices/": ""},
		"/dev/attestation":     {"/dev/attestation/attestation_type": "dcap"},
		"/proc/driver":         {"/proc/driver/nvidia/": ""},
	} {
		t.Run(name, func(t *testing.T) {
			host := machine(t, nil, files)
			if err := os.Chmod(host.Path(name), 0); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(host.Path(name), 0o700) })
			var log strings.Builder
			if _, err := Detect(t.Context(), Options{Host: host, Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
				t.Error(err)
			}
			if !strings.Contains(log.String(), "level=WARN msg=\"Looking for a TEE is not permitted") || !strings.Contains(log.String(), name) {
				t.Errorf("says %q", log.String())
			}
		})
	}
}

// stub is an attester with a fixed answer; it records what it was asked.
type stub struct {
	tee    string
	answer string
	err    error
	asked  *[]byte
}

func (s stub) TEE() string { return s.tee }
func (s stub) Evidence(_ context.Context, reportData []byte) (json.RawMessage, error) {
	if s.asked != nil {
		*s.asked = reportData
	}
	return json.RawMessage(s.answer), s.err
}

type binder struct{ stub }

func (b binder) BindInitData(_ context.Context, digest []byte) error {
	*b.asked = digest
	return b.err
}

func TestSet(t *testing.T) {
	var asked []byte
	boom := errors.New("boom")
	s := &Set{Primary: stub{tee: "tdx", answer: `{"quote":""}`, asked: &asked}}
	if out, err := s.Evidence(t.Context(), []byte("rd")); err != nil || string(out) != `{"quote":""}` || string(asked) != "rd" {
		t.Errorf("evidence %s, %v for %q", out, err, asked)
	}
	if out, err := s.AdditionalEvidence(t.Context(), nil); err != nil || out != "" {
		t.Errorf("no devices: %q, %v", out, err)
	}
	s.Devices = []Attester{stub{tee: "sampledevice", answer: `{"b":"<"}`}, stub{tee: "nvidia", answer: `{ "a" : 1 }`}}
	if d := cmp.Diff([]string{"nvidia", "sampledevice"}, s.DeviceTEEs()); d != "" {
		t.Error(d)
	}
	if out, err := s.AdditionalEvidence(t.Context(), nil); err != nil || out != `{"nvidia":{"a":1},"sampledevice":{"b":"\u003c"}}` {
		t.Errorf("devices: %s, %v", out, err)
	}
	s.Devices = append(s.Devices, stub{tee: "hygondcu", err: boom})
	if out, err := s.AdditionalEvidence(t.Context(), nil); !errors.Is(err, boom) || out != "" {
		t.Errorf("one device fails: %q, %v", out, err)
	}
	if err := s.BindInitData(t.Context(), []byte("d")); !errors.Is(err, ErrUnsupported) {
		t.Errorf("binding with a TEE that cannot: %v", err)
	}
	s.Primary = binder{stub{tee: "tdx", asked: &asked}}
	if err := s.BindInitData(t.Context(), []byte("digest")); err != nil || string(asked) != "digest" {
		t.Errorf("binding: %v, %q", err, asked)
	}
	s.Primary = binder{stub{tee: "tdx", err: boom, asked: &asked}}
	if err := s.BindInitData(t.Context(), nil); !errors.Is(err, boom) {
		t.Errorf("binding fails: %v", err)
	}
}

// What a guest can do beside evidence, and that the list of what is supported
// says neither too much nor too little.
func TestSupported(t *testing.T) {
	made := []string{}
	for _, tee := range names() {
		a := makeAttester(tee, podvm.Host{Root: t.TempDir()})
		if a == nil {
			continue
		}
		if a.TEE() != tee {
			t.Errorf("the attester of %s says %s", tee, a.TEE())
		}
		if _, ok := a.(InitDataBinder); !ok {
			t.Errorf("%s does not bind init data", tee)
		}
		made = append(made, tee)
	}
	if d := cmp.Diff(append(made, "sample", "sampledevice"), Supported()); d != "" {
		t.Error(d)
	}
	for _, tee := range []string{"tdx", "az-tdx-vtpm", "az-snp-vtpm", "tpm"} {
		if _, ok := makeAttester(tee, podvm.Host{}).(Measurer); !ok {
			t.Errorf("%s has no registers", tee)
		}
	}
}

func TestSigns(t *testing.T) {
	h := machine(t, nil, map[string]string{"/dev/tdx_guest": "", "/sys/devices/platform/sev-guest/": "", "/dev/csv-guest": ""})
	got := Signs(t.Context(), Options{Host: h, Log: slog.New(slog.DiscardHandler)})
	want := []Sign{{"tdx", "/dev/tdx_guest"}, {"snp", "/sys/devices/platform/sev-guest"}, {"csv", "/dev/csv-guest"}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got := Signs(t.Context(), Options{Host: machine(t, nil, nil)}); got != nil {
		t.Errorf("%v", got)
	}
}
