package forwarder

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sealpod/sealpod/podvm"
)

var silent = slog.New(slog.DiscardHandler)

// handshake returns how a connection of both ends; what the client reads tells
// it whether the server accepted its certificate.
func handshake(t *testing.T, server, client *tls.Config) (state tls.ConnectionState, byServer, byClient error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			s := tls.Server(conn, server)
			if err = s.Handshake(); err == nil {
				_, err = s.Write([]byte("x"))
			}
		}
		done <- err
	}()
	conn, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
		state = conn.ConnectionState()
	}
	return state, <-done, err
}

func TestWhoIsLetIn(t *testing.T) {
	auto, manual := autoWorker(t), manualWorker(t)
	dir := t.TempDir()
	put := func(name string, raw []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	files := TLS{CertFile: put("tls.crt", manual.server.cert), KeyFile: put("tls.key", manual.server.key), CAFile: put("ca.crt", manual.ca.cert)}
	expired := auto
	expired.client = expiredClient(t)
	stranger, nobody, forServers := auto, auto, manual
	stranger.client = newClientPair(t)
	nobody.client = nil
	forServers.client = newServerPair(t, manual.ca, "podvm-server")
	ofClient := auto
	ofClient.client = certificate(t, auto.client, adaptorsOwn) // its issuer is no CA
	version := func(c *tls.Config, v uint16) *tls.Config { c.MinVersion, c.MaxVersion = v, v; return c }
	with := func(f File, change func(*File)) File { change(&f); return f }
	for name, tt := range map[string]struct {
		flags  TLS
		file   File
		client *tls.Config
		refuse string // by the server
	}{
		"automatic":                     {file: auto.file(), client: auto.config(t)},
		"automatic, TLS 1.2":            {file: auto.file(), client: version(auto.config(t), tls.VersionTLS12)},
		"manual":                        {flags: files, client: manual.config(t)},
		"manual, host sends a pair too": {flags: files, file: auto.file(), client: manual.config(t)},
		"only a certificate by flag":    {flags: TLS{CertFile: files.CertFile}, file: auto.file(), client: auto.config(t)},
		"TLS 1.1":                       {file: auto.file(), client: version(auto.config(t), tls.VersionTLS11), refuse: "unsupported versions"},
		"TLS 1.2 where 1.3 is asked for": {
			file:   with(auto.file(), func(f *File) { f.MinVersion = "VersionTLS13" }),
			client: version(auto.config(t), tls.VersionTLS12), refuse: "unsupported versions",
		},
		"no certificate":                     {file: auto.file(), client: nobody.config(t), refuse: "didn't provide a certificate"},
		"another's certificate":              {file: auto.file(), client: stranger.config(t), refuse: "unknown authority"},
		"expired":                            {file: with(auto.file(), func(f *File) { f.ClientCA = text{expired.client.cert} }), client: expired.config(t), refuse: "expired"},
		"a certificate for servers":          {flags: files, client: forServers.config(t), refuse: "incompatible key usage"},
		"signed by the client, who is no CA": {file: auto.file(), client: ofClient.config(t), refuse: "parent certificate cannot sign"},
		"anyone, if told so":                 {flags: TLS{AnyClient: true}, file: with(auto.file(), func(f *File) { f.ClientCA = text{} }), client: nobody.config(t)},
		"anyone, upstream's flag":            {flags: TLS{SkipVerify: true}, file: with(auto.file(), func(f *File) { f.ClientCA = text{} }), client: nobody.config(t)},
	} {
		t.Run(name, func(t *testing.T) {
			tt.file.ServerKey = text{slices.Clone(tt.file.ServerKey.Secret)} // wiped by its reader
			c, err := tt.flags.config(tt.file, silent)
			if err != nil {
				t.Fatal(err)
			}
			_, byServer, byClient := handshake(t, c, tt.client)
			if tt.refuse == "" {
				if byServer != nil || byClient != nil {
					t.Errorf("server: %v, client: %v", byServer, byClient)
				}
				return
			}
			if byServer == nil || byClient == nil || !strings.Contains(byServer.Error(), tt.refuse) {
				t.Errorf("server: %v, client: %v; want %q", byServer, byClient, tt.refuse)
			}
		})
	}
}

func TestCipherSuitesAreThoseOfTheHost(t *testing.T) {
	auto := autoWorker(t)
	f := auto.file()
	f.MinVersion = "VersionTLS12"
	f.CipherSuites = []string{"TLS_RSA_WITH_RC4_128_SHA", "TLS_AES_128_GCM_SHA256", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305"}
	c, err := TLS{}.config(f, silent)
	if err != nil {
		t.Fatal(err)
	}
	client := auto.config(t)
	client.MaxVersion = tls.VersionTLS12
	state, byServer, byClient := handshake(t, c, client)
	if byServer != nil || byClient != nil || state.CipherSuite != tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256 {
		t.Errorf("server: %v, client: %v, suite %s", byServer, byClient, tls.CipherSuiteName(state.CipherSuite))
	}
	client.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384}
	if _, byServer, _ := handshake(t, c, client); byServer == nil || !strings.Contains(byServer.Error(), "cipher suite") {
		t.Errorf("another suite: %v", byServer)
	}
}

func TestTLSIsRefused(t *testing.T) {
	auto, other := autoWorker(t), autoWorker(t)
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, maxPEM+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		flags  TLS
		change func(*File)
		is     error
		text   string
	}{
		"no CA":          {change: func(f *File) { f.ClientCA = text{} }, is: ErrNoClientAuth, text: "-insecure-no-client-auth"},
		"CA and skip":    {flags: TLS{SkipVerify: true}, is: ErrConfig, text: "specifying a root certificates file with the insecure flag is not allowed"},
		"CA, and anyone": {flags: TLS{AnyClient: true}, text: ""},
		"no pair":        {change: func(f *File) { f.ServerCert, f.ServerKey = text{}, text{} }, is: ErrConfig, text: "tls: neither Certificates, GetCertificate, nor GetConfigForClient set in Config"},
		"no key":         {change: func(f *File) { f.ServerKey = text{} }, is: errNoPair},
		"key of another": {change: func(f *File) { f.ServerKey = other.file().ServerKey }, is: ErrConfig, text: "does not match"},
		"key is garbage": {change: func(f *File) { f.ServerKey = text{[]byte("x")} }, is: ErrConfig},
		"CA is garbage":  {change: func(f *File) { f.ClientCA = text{[]byte("x")} }, is: ErrConfig, text: "no PEM block"},
		"CA is a key":    {change: func(f *File) { f.ClientCA = text{auto.client.key} }, is: ErrConfig, text: "want CERTIFICATE"},
		"CA is cut": {change: func(f *File) {
			f.ClientCA = text{[]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")}
		}, is: ErrConfig, text: "certificate 1"},
		"CA ends early":          {change: func(f *File) { f.ClientCA = text{[]byte(string(auto.client.cert) + string(auto.client.cert[:100]))} }, is: ErrConfig, text: "cut off"},
		"CA is many":             {change: func(f *File) { f.ClientCA = text{[]byte(strings.Repeat(string(auto.client.cert), maxAnchors+1))} }, is: podvm.ErrTooLarge},
		"no such CA file":        {flags: TLS{CAFile: filepath.Join(dir, "none")}, is: fs.ErrNotExist},
		"no such pair":           {flags: TLS{CertFile: filepath.Join(dir, "none"), KeyFile: filepath.Join(dir, "none")}, is: fs.ErrNotExist},
		"large file":             {flags: TLS{CAFile: big}, is: podvm.ErrTooLarge},
		"TLS 1.1":                {change: func(f *File) { f.MinVersion = "VersionTLS11" }, is: ErrConfig, text: "invalid TLS profile: "},
		"TLS 1.0":                {change: func(f *File) { f.MinVersion = "VersionTLS10" }, is: ErrConfig, text: "invalid TLS profile: "},
		"unknown version":        {change: func(f *File) { f.MinVersion = "TLS1.3" }, is: ErrConfig, text: "invalid TLS profile: "},
		"suites for 1.3":         {change: func(f *File) { f.MinVersion, f.CipherSuites = "VersionTLS13", []string{"TLS_AES_128_GCM_SHA256"} }, is: ErrConfig, text: "invalid TLS profile: "},
		"unknown suite":          {change: func(f *File) { f.CipherSuites = []string{"TLS_MAGIC\n"} }, is: ErrConfig, text: "invalid TLS profile: cipher suite \"TLS_MAGIC \""},
		"nothing but bad suites": {change: func(f *File) { f.CipherSuites = []string{"TLS_RSA_WITH_RC4_128_SHA"} }, is: ErrConfig, text: "no cipher suite of the list is secure"},
	} {
		t.Run(name, func(t *testing.T) {
			f := auto.file()
			if tt.change != nil {
				tt.change(&f)
			}
			c, err := tt.flags.config(f, silent)
			if tt.is == nil && tt.text == "" {
				// A CA counts, whatever else is allowed.
				if err != nil || c.ClientAuth != tls.RequireAndVerifyClientCert {
					t.Errorf("%v", err)
				}
				return
			}
			if c != nil || err == nil || tt.is != nil && !errors.Is(err, tt.is) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("error %v, want %v and %q", err, tt.is, tt.text)
			}
		})
	}
	if c, err := (TLS{Off: true}).config(File{}, silent); c != nil || err != nil {
		t.Errorf("off: %v, %v", c, err)
	}
}
