package doctor

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealpod/sealpod/attester/initdata"
	"github.com/sealpod/sealpod/podvm"
)

// machine is a doctor for a directory tree with files, and with configuration files
// and sockets in another directory. A name that ends in / is a directory.
func machine(t *testing.T, env map[string]string, files map[string]string) *doctor {
	t.Helper()
	dir, err := os.MkdirTemp("", "d") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	d := &doctor{Config{
		Host:        podvm.Host{Root: filepath.Join(dir, "root"), LookupEnv: func(k string) (string, bool) { v, ok := env[k]; return v, ok }},
		AgentConfig: filepath.Join(dir, "aa.toml"), HubConfig: filepath.Join(dir, "cdh.toml"), ForwarderConfig: filepath.Join(dir, "apf.json"),
		AgentSocket: filepath.Join(dir, "aa.sock"), HubSocket: filepath.Join(dir, "cdh.sock"), KataSocket: filepath.Join(dir, "kata.sock"),
		REST: "127.0.0.1:1", ForwarderMetrics: filepath.Join(dir, "apf-metrics.sock"), Namespace: filepath.Join(dir, "netns"),
		Images: filepath.Join(dir, "images/new"),
	}, slog.New(slog.DiscardHandler)}
	files["/proc/"], files["/run/"] = "", ""
	for name, content := range files {
		path := filepath.Join(d.Host.Root, name)
		if !strings.HasPrefix(name, "/") {
			path = filepath.Join(dir, name)
		}
		if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(path, 0o700)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func TestTEEWithoutAnAgent(t *testing.T) {
	var r Report
	machine(t, nil, map[string]string{"/dev/tdx_guest": ""}).tee(t.Context(), &r)
	r.wants(t, map[Status][]string{OK: {"tdx, detected by /dev/tdx_guest"}, Warning: {"does not say which TEE it uses: no socket"}})
}

func TestClock(t *testing.T) {
	for name, c := range map[string]struct {
		ahead time.Duration
		want  Status
		text  string
	}{
		"right":     {0, OK, "as the relying party has it"},
		"a bit off": {-2 * time.Minute, Warning, "is 2m0s from that"},
		"wrong":     {time.Hour, Failed, "is -1h0m0s from that"},
	} {
		t.Run(name, func(t *testing.T) {
			// Its certificate is trusted by nobody, as where the clock is wrong.
			srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(c.ahead).UTC().Format(http.TimeFormat))
			}))
			defer srv.Close()
			var r Report
			machine(t, nil, map[string]string{"aa.toml": kbsAt(srv.URL)}).clock(t.Context(), &r)
			got := strings.NewReplacer("2m1s", "2m0s", "59m59s", "1h0m0s").Replace(find(&r, c.want))
			if !strings.Contains(got, c.text) {
				t.Errorf("%+v", r.Findings)
			}
		})
	}
	var r Report
	machine(t, nil, map[string]string{}).clock(t.Context(), &r)
	if find(&r, Failed) != "" || !strings.Contains(find(&r, OK)+find(&r, Skipped), "not compared with the relying party") {
		t.Errorf("%+v", r.Findings)
	}
}

func kbsAt(url string) string { return "[token_configs.kbs]\nurl = \"" + url + "\"\n" }

func TestSpace(t *testing.T) {
	var r Report
	machine(t, nil, map[string]string{"/proc/meminfo": "MemTotal: 1000000 kB\nMemAvailable:   51200 kB\n"}).space(t.Context(), &r)
	if got := find(&r, Warning); !strings.Contains(got, "memory: 50 MiB available") {
		t.Errorf("%+v", r.Findings)
	}
	if len(r.Findings) != 3 || !strings.Contains(r.Findings[0].Text, "images/new: ") || !strings.Contains(r.Findings[1].Text, "/run: ") {
		t.Errorf("%+v", r.Findings)
	}
	r = Report{}
	machine(t, nil, map[string]string{"/proc/meminfo": "MemAvailable: many kB\n"}).space(t.Context(), &r)
	if got := find(&r, Warning); !strings.Contains(got, "memory: ") {
		t.Errorf("%+v", r.Findings)
	}
}

func certificate(t *testing.T, until time.Duration) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(until)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestCA(t *testing.T) {
	good, old := certificate(t, time.Hour), certificate(t, -time.Minute)
	bad := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	const bundle = "/etc/ssl/certs/ca-certificates.crt"
	for name, c := range map[string]struct {
		env, files map[string]string
		want       map[Status][]string
	}{
		"none":      {nil, map[string]string{}, map[Status][]string{Warning: {"no certificates of the system"}}},
		"some":      {nil, map[string]string{bundle: good + old + good}, map[Status][]string{OK: {": 2 valid certificates"}}},
		"malformed": {nil, map[string]string{bundle: good + bad}, map[Status][]string{Warning: {": 1 valid certificates, 1 malformed"}}},
		"expired":   {nil, map[string]string{"/etc/ssl/cert.pem": old}, map[Status][]string{Failed: {"cert.pem: no valid certificate, 1 expired"}}},
		"by name":   {map[string]string{"SSL_CERT_FILE": "/x.pem"}, map[string]string{bundle: old, "/x.pem": good}, map[Status][]string{OK: {"/x.pem: 1 valid"}}},
		"the relying party's": {
			nil, map[string]string{bundle: good, "aa.toml": kbsAt("https://kbs") + "cert = \"\"\"\n" + old + "\"\"\"\n"},
			map[Status][]string{OK: {"1 valid"}, Failed: {"cert in [token_configs.kbs]: no valid certificate, 1 expired"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r Report
			machine(t, c.env, c.files).ca(t.Context(), &r)
			r.wants(t, c.want)
		})
	}
}

func TestConfig(t *testing.T) {
	const network = `{"pod-network":{"podip":"10.1.2.3/24","interface":"eth0","worker-node-ip":"10.0.0.1/24","tunnel-type":"vxlan"},"new":1}`
	for name, c := range map[string]struct {
		files map[string]string
		want  map[Status][]string
	}{
		"none": {map[string]string{}, map[Status][]string{Skipped: {"aa.toml", "cdh.toml", "apf.json"}}},
		"good": {
			map[string]string{
				"aa.toml":  kbsAt("http://kbs") + "[attester]\nallow = [\"tdx\"]\n",
				"cdh.toml": "socket = \"unix:///x\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"http://kbs\"\n[image]\nimage_security_policy_uri = \"kbs:///a/b/c\"\n",
				"apf.json": network,
			},
			map[Status][]string{OK: {"aa.toml can be used", "cdh.toml can be used", "apf.json can be used"}, Warning: {`nothing reads the key "new"`}},
		},
		"doubtful": {
			map[string]string{
				"aa.toml":  kbsAt("http://kbs") + "certt = \"\"\n",
				"cdh.toml": "skip_sealed_secret_verification = true\nsocket = \"unix:///x\"\n[kbc]\nname = \"cc_kbc\"\nurl = \"http://kbs\"\n",
			},
			map[Status][]string{
				OK:      {"aa.toml can be used", "cdh.toml can be used"},
				Warning: {`line 3: unknown key "token_configs.kbs.certt"`, "would attest as sample", "every image is allowed", "without verification"},
				Skipped: {"apf.json"},
			},
		},
		"bad": {
			map[string]string{"aa.toml": kbsAt("ftp://kbs"), "cdh.toml": "socket = 7", "apf.json": "{}"},
			map[Status][]string{
				Failed:  {`aa.toml: token_configs.kbs: KBS URL "ftp://kbs"`, "cdh.toml: ", "there is no pod-network"},
				Warning: {"would attest as sample"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r Report
			machine(t, nil, c.files).config(t.Context(), &r)
			r.wants(t, c.want)
		})
	}
}

func TestDNS(t *testing.T) {
	resolv := "search x\nnameserver 192.0.2.1\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  map[Status][]string
	}{
		"nothing configured": {map[string]string{}, map[Status][]string{Warning: {"names no name server"}, Skipped: {"no relying party"}}},
		"an address":         {map[string]string{"/etc/resolv.conf": resolv, "aa.toml": kbsAt("http://[::1]:8080")}, map[Status][]string{OK: {"is at ::1"}}},
		"a name":             {map[string]string{"/etc/resolv.conf": resolv, "aa.toml": kbsAt("http://localhost:8080")}, map[Status][]string{OK: {"localhost is "}}},
		"an unknown name":    {map[string]string{"/etc/resolv.conf": resolv, "aa.toml": kbsAt("http://no-such-host.invalid")}, map[Status][]string{Failed: {"no-such-host.invalid does not resolve"}}},
	} {
		t.Run(name, func(t *testing.T) {
			var r Report
			machine(t, nil, c.files).dns(t.Context(), &r)
			r.wants(t, c.want)
		})
	}
}

// withInitData is a machine with init data and its digest.
func withInitData(t *testing.T) (d *doctor, digest string) {
	t.Helper()
	text := "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n"
	encoded, err := initdata.Encode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(text))
	return machine(t, nil, map[string]string{"/run/peerpod/initdata": string(encoded)}), string(sum[:])
}

func TestInitData(t *testing.T) {
	text := "algorithm = \"sha256\"\nversion = \"0.1.0\"\n\n[data]\n\"aa.toml\" = \"\"\n"
	encoded, err := initdata.Encode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(text))
	digest := hex.EncodeToString(sum[:])
	const file, written = "/run/peerpod/initdata", "/run/peerpod/initdata.digest"
	silent := "does not say what its evidence vouches for"
	for name, c := range map[string]struct {
		files map[string]string
		want  map[Status][]string
	}{
		"none":      {map[string]string{}, map[Status][]string{Skipped: {"no init data"}}},
		"malformed": {map[string]string{file: "x"}, map[Status][]string{Failed: {"initdata: "}}},
		"measured in PCR 8": {
			map[string]string{file: string(encoded), written: digest, pcr8: strings.ToUpper(extended(sum[:])) + "\n"},
			map[Status][]string{OK: {"the digest is " + digest, "PCR 8 holds it"}, Warning: {silent}},
		},
		"another digest": {map[string]string{file: string(encoded), written: strings.Repeat("0", 64)}, map[Status][]string{Failed: {"is not the digest"}, Warning: {silent}}},
		"not measured": {
			map[string]string{file: string(encoded), pcr8: strings.Repeat("0", 64)},
			map[Status][]string{Warning: {"there is no " + written, silent, "PCR 8 is empty"}},
		},
		"something else measured": {
			map[string]string{file: string(encoded), written: digest, pcr8: strings.Repeat("1", 64)},
			map[Status][]string{OK: {digest}, Warning: {silent, "PCR 8 holds something else"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var r Report
			machine(t, nil, c.files).initdata(t.Context(), &r)
			r.wants(t, c.want)
		})
	}
}
