package server

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/attester/internal/vtpm"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/attester/snp"
	"github.com/sealpod/sealpod/attester/tdx"
	"github.com/sealpod/sealpod/attester/tpm"
	"github.com/sealpod/sealpod/attester/vtpmtest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

const podDocument = "algorithm = \"sha256\"\nversion = \"0.1.0\"\n"

// leave puts init data where process-user-data does.
func leave(t *testing.T, host podvm.Host, text string) {
	t.Helper()
	encoded, err := initdata.Encode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	write(t, host.Path(PodInitData), string(encoded)+"\n")
}

// refusing is a TEE whose place for init data is as err says.
type refusing struct{ err error }

func (refusing) TEE() string                                               { return "refusing" }
func (refusing) Evidence(context.Context, []byte) (json.RawMessage, error) { return nil, nil }
func (r refusing) BindInitData(context.Context, []byte) error              { return r.err }

// Init data of a pod VM is bound by an agent that no flag tells of it.
func TestBindInitDataOfThePodVM(t *testing.T) {
	sum := sha256.Sum256([]byte(podDocument))
	for name, tt := range map[string]struct {
		tee  attester.Attester
		doc  bool // goes to the KBS
		log  string
		want error
	}{
		"bound at launch":        {tee: measured{string(sum[:])}, doc: true, log: "Init data is bound"},
		"sample":                 {tee: sample.New(), doc: true, log: "level=WARN"},
		"SNP, none at launch":    {tee: refusing{errors.Join(snp.ErrInitData, snp.ErrNoInitData)}, log: "level=WARN msg=\"Init data is not bound"},
		"SNP, other at launch":   {tee: refusing{snp.ErrInitData}, want: snp.ErrInitData},
		"TDX, none at launch":    {tee: refusing{errors.Join(tdx.ErrInitData, tdx.ErrNoInitData)}, log: "level=WARN msg=\"Init data is not bound"},
		"TDX, other at launch":   {tee: refusing{tdx.ErrInitData}, want: tdx.ErrInitData},
		"TPM, PCR 8 is taken":    {tee: refusing{vtpm.ErrInitData}, want: vtpm.ErrInitData},
		"TPM, digest of SHA-384": {tee: refusing{errors.Join(vtpm.ErrInitData, vtpm.ErrDigestSize)}, log: "level=WARN msg=\"Init data is not bound"},
	} {
		t.Run(name, func(t *testing.T) {
			host := podvm.Host{Root: t.TempDir()}
			leave(t, host, podDocument)
			var log strings.Builder
			out, err := BindInitData(t.Context(), defaults(nil), &attester.Set{Primary: tt.tee}, host, "", "", slog.New(slog.NewTextHandler(&log, nil)))
			if !errors.Is(err, tt.want) || (tt.want == nil) != (err == nil) {
				t.Fatalf("got %v", err)
			}
			if (out.Document != nil) != tt.doc || tt.doc && out.Document.Text != podDocument || out.Recorded != nil {
				t.Errorf("got %+v", out)
			}
			if !strings.Contains(log.String(), tt.log) {
				t.Errorf("log %q", log.String())
			}
		})
	}
}

func TestBindInitDataOfThePodVMOnTDX(t *testing.T) {
	sum := sha256.Sum256([]byte(podDocument))
	for name, tt := range map[string]struct {
		rtmr3, registers, recorded bool
	}{
		"not asked for":               {registers: true},
		"RTMR3":                       {rtmr3: true, registers: true, recorded: true},
		"RTMR3, kernel cannot extend": {rtmr3: true},
	} {
		t.Run(name, func(t *testing.T) {
			g := newTDXGuest(t, nil, tt.registers)
			leave(t, g.host, podDocument)
			c := defaults(func(c *Config) { c.InitData.RTMR3 = tt.rtmr3 })
			out, err := BindInitData(t.Context(), c, g.set(), g.host, "", "", quiet)
			if err != nil {
				t.Fatal(err)
			}
			if tt.recorded != bytes.Equal(out.Recorded, sum[:]) || tt.recorded != (out.Document != nil) {
				t.Errorf("got %+v", out)
			}
		})
	}
}

// The agent and process-user-data bind the same digest to PCR 8, whoever is
// first, and the agent notices when the VM was given other init data since.
func TestBindInitDataOfThePodVMOnATPM(t *testing.T) {
	machine := vtpmtest.Start(t, testenv.Tool(t, "swtpm"))
	host := machine.Machine(t)
	tees := &attester.Set{Primary: tpm.New(host)}
	leave(t, host, podDocument)
	sum := sha256.Sum256([]byte(podDocument))
	machine.Extend(t, vtpm.InitDataPCR, sum)
	for range 2 {
		if out, err := BindInitData(t.Context(), defaults(nil), tees, host, "", "", quiet); err != nil || out.Document == nil {
			t.Errorf("got %+v, %v", out, err)
		}
	}
	leave(t, host, podDocument+"# other\n")
	if _, err := BindInitData(t.Context(), defaults(nil), tees, host, "", "", quiet); !errors.Is(err, tpm.ErrInitData) {
		t.Errorf("other init data: %v", err)
	}
}

func TestBindInitDataOfThePodVMThatIsNotUsable(t *testing.T) {
	tees := &attester.Set{Primary: sample.New()}
	for name, content := range map[string]string{
		"empty":             "",
		"not encoded":       podDocument,
		"another algorithm": "md5",
	} {
		t.Run(name, func(t *testing.T) {
			host := podvm.Host{Root: t.TempDir()}
			write(t, host.Path(PodInitData), content)
			if content == "md5" {
				leave(t, host, "algorithm = \"md5\"\n")
			}
			out, err := BindInitData(t.Context(), defaults(nil), tees, host, "", "", quiet)
			if !errors.Is(err, initdata.ErrInitData) || !strings.Contains(err.Error(), PodInitData) || out.Document != nil {
				t.Errorf("got %+v, %v", out, err)
			}
			host.LookupEnv = func(name string) (string, bool) { return "off", name == "SEALPOD_INITDATA" }
			if out, err := BindInitData(t.Context(), defaults(nil), tees, host, "", "", quiet); err != nil || out.Document != nil {
				t.Errorf("switched off: %+v, %v", out, err)
			}
		})
	}
}
