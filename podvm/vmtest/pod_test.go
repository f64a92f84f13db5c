package vmtest

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/agent"
	"github.com/sealpod/sealpod/forwarder/agenttest"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/testenv"
)

// pod is what cloud-api-adaptor makes for a machine, and its side of TLS.
type pod struct {
	owner    *owner
	iso      string
	initData string // TOML
	tls      *tls.Config
}

const (
	podServer = "podvm-test-0123abcd"
	podIP     = podAddress
	hostIP    = "10.0.2.2"
)

// newPod makes a pod's user data on a disk of the label cidata, as the libvirt
// provider does.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/adaptor/cloud at fbdde756.
func newPod(t *testing.T, o *owner) *pod {
	t.Helper()
	p := &pod{owner: o, initData: `algorithm = "sha256"
version = "0.1.0"

[data]
"aa.toml" = '''
[token_configs.kbs]
url = "http://` + hostIP + `:` + o.kbs + `"
[attester]
allow = ["tpm"]
'''
"cdh.toml" = '''
socket = "unix:///run/confidential-containers/cdh.sock"
[kbc]
name = "cc_kbc"
url = "http://` + hostIP + `:` + o.kbs + `"
[image]
image_security_policy_uri = "kbs:///` + imagePolicy + `"
[[image.registry_config.registry]]
location = "` + hostIP + `:` + o.registry + `"
insecure = true
[cloud_volumes]
keys = ["kbs:///` + volumeKey + `"]
'''
"policy.rego" = '''
package agent_policy
'''
`}
	server, client := selfSigned(t, podServer), selfSigned(t, "")
	roots := x509.NewCertPool()
	roots.AddCert(server.Leaf)
	p.tls = &tls.Config{Certificates: []tls.Certificate{client}, RootCAs: roots, ServerName: podServer}
	apf, err := json.Marshal(map[string]any{
		"pod-network": map[string]any{
			"podip": podIP, "pod-hw-addr": "02:00:00:00:00:05", "interface": "eth0", "worker-node-ip": hostIP + "/24",
			"tunnel-type": "vxlan", "mtu": 1450, "index": 1, "vxlan-port": 4789, "vxlan-id": 555001, "neighbors": nil,
			// The first is written as real hosts do.
			"routes": []map[string]string{{"dst": "::ffff:0.0.0.0/0", "gw": "10.244.1.1", "dev": "eth0"}, {"dst": "10.244.1.0/24", "gw": "", "dev": "eth0"}},
		},
		"pod-namespace": "default", "pod-name": "test",
		"tls-server-cert": certPEM(server), "tls-server-key": keyPEM(t, server), "tls-client-ca": certPEM(client),
	})
	if err != nil {
		t.Fatal(err)
	}
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	if _, err := z.Write([]byte(p.initData)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	var data strings.Builder
	data.WriteString("#cloud-config\n\nwrite_files:\n")
	for _, f := range [][2]string{
		{"apf.json", string(apf)}, {"auth.json", `{"auths":{}}`}, {"scratch-space.marker", "yes"},
		{"initdata", base64.StdEncoding.EncodeToString(zipped.Bytes())},
	} {
		fmt.Fprintf(&data, "  - path: /run/peerpod/%s\n    content: |\n      %s\n", f[0], f[1])
	}
	dir := t.TempDir()
	for name, content := range map[string]string{"user-data": data.String(), "meta-data": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p.iso = filepath.Join(t.TempDir(), "cidata.iso")
	cmd := exec.CommandContext(t.Context(), testenv.Tool(t, "xorriso"), "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-R", "-o", p.iso, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return p
}

// pcr8 is what the digest of the init data makes of the register.
func (p *pod) pcr8() string {
	digest := sha256.Sum256([]byte(p.initData))
	sum := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	return hex.EncodeToString(sum[:])
}

// cdrom is the disk with user data.
func (p *pod) cdrom() []string {
	return []string{"-drive", "if=none,id=cidata,media=cdrom,readonly=on,format=raw,file=" + p.iso, "-device", "ide-cd,drive=cidata"}
}

// createSandbox does what a host's first calls do, as soon as the machine lets it.
func (p *pod) createSandbox(ctx context.Context, vm *VM) error {
	again := time.NewTicker(200 * time.Millisecond)
	defer again.Stop()
	for {
		err := p.try(ctx, vm)
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-vm.done:
			return errors.Join(errors.New("the machine went off before a sandbox was there"), err)
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		}
	}
}

// dial connects as cloud-api-adaptor does.
func (p *pod) dial(ctx context.Context, vm *VM) (*ttrpc.Client, error) {
	addr, err := vm.Addr(ctx, 15150)
	if err != nil {
		return nil, err
	}
	conn, err := (&tls.Dialer{Config: p.tls}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return ttrpc.NewClient(conn), nil
}

func (p *pod) try(ctx context.Context, vm *VM) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	client, err := p.dial(ctx, vm)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx = agenttest.With(ctx, agenttest.AskID, sandboxCall)
	_, err = agent.NewAgentServiceClient(client).CreateSandbox(ctx, &agent.CreateSandboxRequest{SandboxId: "test", Dns: []string{"nameserver 192.0.2.1"}})
	return err
}

// runContainers makes one container that asks for a secret, and one of the sealed
// image with an encrypted cloud volume.
func (p *pod) runContainers(ctx context.Context, vm *VM) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	client, err := p.dial(ctx, vm)
	if err != nil {
		return err
	}
	defer client.Close()
	a := agent.NewAgentServiceClient(client)
	if _, err := a.CreateContainer(ctx, &agent.CreateContainerRequest{
		ContainerId: firstContainer,
		OCI:         &agent.Spec{Linux: &agent.Linux{}, Annotations: map[string]string{agenttest.SecretAnnotation: ownersSecret}},
	}); err != nil {
		return fmt.Errorf("the first container: %w", err)
	}
	if _, err := a.StartContainer(ctx, &agent.StartContainerRequest{ContainerId: firstContainer}); err != nil {
		return fmt.Errorf("the first container's secret: %w", err)
	}
	// Of the machine's disks, LUN 0 is /dev/vdb.
	_, err = a.CreateContainer(ctx, &agent.CreateContainerRequest{
		ContainerId: appContainer,
		Storages:    []*agent.Storage{{Driver: "image_guest_pull", Source: p.owner.image(), MountPoint: containersDir + appContainer + "/rootfs"}},
		OCI: &agent.Spec{
			Linux:       &agent.Linux{},
			Mounts:      []*agent.Mount{{Destination: "/data", Source: "/var/lib/data", Type: "bind"}},
			Annotations: map[string]string{"io.confidentialcontainers.org.cloud_volumes": `{"data": {"mount_point": "/data", "lun": "0", "encrypt_type": "luks2", "key_id": "` + volumeKey + `"}}`},
		},
	})
	if err != nil {
		return fmt.Errorf("the container of the sealed image: %w", err)
	}
	return nil
}

// strangers reach the port and nothing behind it.
func (p *pod) refusesStrangers(t *testing.T, vm *VM) {
	t.Helper()
	addr, err := vm.Addr(t.Context(), 15150)
	if err != nil {
		t.Error(err)
		return
	}
	for name, certs := range map[string][]tls.Certificate{"nobody": nil, "somebody else": {selfSigned(t, "")}} {
		c := p.tls.Clone()
		c.Certificates = certs
		conn, err := (&tls.Dialer{Config: c}).DialContext(t.Context(), "tcp", addr)
		if err == nil {
			// In TLS 1.3 the client learns of the refusal with what it reads first.
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "tls: ") {
			t.Errorf("the forwarder served %s: %v", name, err)
		}
	}
}

// selfSigned is a certificate that is its own issuer, of the server called name
// or of a client.
func selfSigned(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		Subject: pkix.Name{Organization: []string{"cloud-api-adaptor"}}, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if name != "" {
		c.DNSNames, c.ExtKeyUsage = []string{name}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func certPEM(c tls.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}))
}

func keyPEM(t *testing.T, c tls.Certificate) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// standIn puts the stand-in for kata-agent into an image.
func standIn(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := build(t, "test", "-c", "-o", filepath.Join(dir, "usr/local/bin/kata-agent"), "./forwarder/agenttest"); err != nil {
		t.Fatalf("building the stand-in for kata-agent: %v", err)
	}
	conf := filepath.Join(dir, "usr/lib/systemd/system/kata-agent.service.d/test.conf")
	if err := os.MkdirAll(filepath.Dir(conf), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte("[Service]\nEnvironment=SEALPOD_AGENTTEST_SOCKET="+agentSocket+" SEALPOD_AGENTTEST_JOURNAL="+agentJournal+
		" SEALPOD_AGENTTEST_GUEST="+podvm.CDHSocket+",/run/netns/podns,"+containersDir+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
