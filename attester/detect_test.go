package attester

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/sealpod/sealpod/podvm"
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

// fakeTPM answers on a socket like a TPM that has nothing but the report of an
// Azure confidential VM: NV_ReadPublic and NV_Read, framed by hand.
// Source: TPM 2.0 library specification part 3, 31.6 and 31.13.
func fakeTPM(t *testing.T, path string, report []byte) {
	t.Helper()
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 4096)
			if n, err := c.Read(buf); err == nil && n >= 10 {
				_, _ = c.Write(tpmAnswer(buf[:n], report))
			}
			_ = c.Close()
		}
	}()
}

func tpmAnswer(cmd, report []byte) []byte {
	frame := func(tag uint16, code uint32, body []byte) []byte {
		out := binary.BigEndian.AppendUint16(nil, tag)
		out = binary.BigEndian.AppendUint32(out, uint32(10+len(body)))
		return append(binary.BigEndian.AppendUint32(out, code), body...)
	}
	switch binary.BigEndian.Uint32(cmd[6:]) {
	case 0x169: // NV_ReadPublic
		if report == nil {
			return frame(0x8001, 0x18b, nil) // TPM_RC_HANDLE
		}
		area := binary.BigEndian.AppendUint32(nil, hclIndex)
		area = binary.BigEndian.AppendUint16(area, 0x000b)     // SHA-256
		area = binary.BigEndian.AppendUint32(area, 0x42040404) // attributes
		area = binary.BigEndian.AppendUint16(area, 0)          // no policy
		area = binary.BigEndian.AppendUint16(area, uint16(len(report)))
		body := append(binary.BigEndian.AppendUint16(nil, uint16(len(area))), area...)
		body = append(binary.BigEndian.AppendUint16(body, 34), append([]byte{0, 0x0b}, make([]byte, 32)...)...)
		return frame(0x8001, 0, body)
	case 0x14e: // NV_Read: size and offset are the last four bytes
		size := int(binary.BigEndian.Uint16(cmd[len(cmd)-4:]))
		at := int(binary.BigEndian.Uint16(cmd[len(cmd)-2:]))
		data := append(binary.BigEndian.AppendUint16(nil, uint16(size)), report[at:at+size]...)
		body := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
		body = append(append(body, data...), 0, 0, 1, 0, 0) // empty password session
		return frame(0x8002, 0, body)
	}
	return frame(0x8001, 0x143, nil) // TPM_RC_COMMAND_CODE
}

func TestDetectAzure(t *testing.T) {
	report := func(magic string, kind uint32, size int) []byte {
		r := make([]byte, size)
		copy(r, magic)
		if size >= hclMinSize {
			binary.LittleEndian.PutUint32(r[hclTypeOffset:], kind)
		}
		return r
	}
	tests := map[string]struct {
		report []byte
		says   string // "" means sample
	}{
		"TDX":               {report("HCLA", 4, 2600), "az-tdx-vtpm"},
		"SNP":               {report("HCLA", 2, 2600), "az-snp-vtpm"},
		"ordinary TPM":      {nil, ""},
		"other report type": {report("HCLA", 3, 2600), ""},
		"other magic":       {report("XXXX", 4, 2600), ""},
		"short index":       {report("HCLA", 4, 64), ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			host := machine(t, nil, map[string]string{"/dev/": ""})
			fakeTPM(t, host.Path("/dev/tpmrm0"), tt.report)
			s, err := Detect(t.Context(), Options{Host: host, Log: slog.New(slog.DiscardHandler)})
			if tt.says == "" {
				if err != nil || s.TEE() != "sample" {
					t.Errorf("got %v, %v", s, err)
				}
				return
			}
			if !errors.Is(err, ErrNoAttester) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("got %v", err)
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
	if _, ok := makeAttester("tdx", podvm.Host{}).(Measurer); !ok {
		t.Error("tdx has no registers")
	}
}
