package doctor

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"

	"github.com/sealpod/sealpod/attester/initdata"
	aaserver "github.com/sealpod/sealpod/attester/server"
	cdhserver "github.com/sealpod/sealpod/cdh/server"
	"github.com/sealpod/sealpod/forwarder"
	"github.com/sealpod/sealpod/podvm"
)

// config reads the configuration files as the daemons do.
func (d *doctor) config(_ context.Context, r *Report) {
	const fix = "correct the init data or user data the pod was started with"
	unread := func(path string, keys []podvm.UnknownKey) {
		for _, k := range keys {
			r.warn("a typing error? nothing reads this key", "%s: %s", path, k)
		}
	}
	if path := d.file(d.AgentConfig); path == "" {
		r.skip("there is no %s", d.AgentConfig)
	} else if c, unknown, err := d.agentConfig(); err != nil {
		r.fail(fix, "%s: %v", d.AgentConfig, err)
	} else {
		unread(d.AgentConfig, unknown)
		if err := c.CheckClients(); err != nil {
			r.fail(fix, "%s: %v", d.AgentConfig, err)
		} else {
			r.ok("%s can be used", d.AgentConfig)
		}
		if len(c.Attester.Allow) == 0 {
			r.warn(`allow = ["tdx", "snp"] in [attester], or whatever this is, keeps a machine without TEE from starting`,
				"%s: a machine without TEE would attest as sample", d.AgentConfig)
		}
	}
	if path := d.file(d.HubConfig); path == "" {
		r.skip("there is no %s", d.HubConfig)
	} else if c, unknown, err := cdhserver.LoadConfig(path, d.settings()); err != nil {
		r.fail(fix, "%s: %v", d.HubConfig, err)
	} else {
		unread(d.HubConfig, unknown)
		if err := c.CheckClients(d.settings()); err != nil {
			r.fail(fix, "%s: %v", d.HubConfig, err)
		} else {
			r.ok("%s can be used", d.HubConfig)
		}
		if c.Image.PolicyURI == "" && c.Image.Policy == "" {
			r.warn("image_security_policy_uri in [image] names one", "%s: every image is allowed", d.HubConfig)
		}
		if c.SkipSealedSecretVerification {
			r.warn("remove skip_sealed_secret_verification", "%s: sealed secrets are taken without verification", d.HubConfig)
		}
	}
	switch _, unknown, err := forwarder.Load(d.ForwarderConfig); {
	case errors.Is(err, fs.ErrNotExist):
		r.skip("there is no %s", d.ForwarderConfig)
	case err != nil:
		r.fail("cloud-api-adaptor writes it: do versions fit?", "%s: %v", d.ForwarderConfig, err)
	default:
		for _, key := range unknown {
			r.warn("a newer cloud-api-adaptor?", "%s: nothing reads the key %q", d.ForwarderConfig, key)
		}
		r.ok("%s can be used", d.ForwarderConfig)
	}
}

// Files of init data.
// Source: cloud-api-adaptor src/cloud-api-adaptor/pkg/paths/paths.go at fbdde756.
const (
	initDataDigest = "/run/peerpod/initdata.digest"
	pcr8           = "/sys/class/tpm/tpm0/pcr-sha256/8"
)

// initdata compares the digest of the init data with what was measured of it.
func (d *doctor) initdata(ctx context.Context, r *Report) {
	const foreign = "the files in /run/peerpod are not what was measured: restart the pod, and ask who changed them"
	raw, err := podvm.ReadFileMax(d.Host.Path(aaserver.PodInitData), initdata.MaxEncodedBytes)
	if errors.Is(err, fs.ErrNotExist) {
		r.skip("there is no init data")
		return
	}
	var doc *initdata.Document
	if err == nil {
		var text []byte
		if text, err = initdata.Decode(raw); err == nil {
			doc, err = initdata.Parse(text)
		}
	}
	if err != nil {
		r.fail("the pod's init data annotation is malformed: base64 of gzip of TOML with algorithm, version and data", "%s: %v", aaserver.PodInitData, err)
		return
	}
	digest := hex.EncodeToString(doc.Digest())
	switch written, err := podvm.ReadFileMax(d.Host.Path(initDataDigest), 4096); {
	case errors.Is(err, fs.ErrNotExist):
		r.warn("systemctl status process-user-data", "there is no %s", initDataDigest)
	case err != nil || strings.TrimSpace(string(written)) != digest:
		r.fail(foreign, "%s is not the digest of the init data, %s", initDataDigest, digest)
	default:
		r.ok("the digest is %s", digest)
	}
	status := d.agentStatus(ctx)
	switch {
	case status == nil:
		r.warn("see the check of the sockets; ask as root", "the attestation agent does not say what its evidence vouches for")
	case status.InitData == digest:
		r.ok("the evidence of %s vouches for it", podvm.Printable(status.TEE, 32))
	case status.InitData == "":
		r.warn("the journal of attestation-agent says why: on TDX without MRCONFIGID, rtmr3 = true in [initdata] of aa.toml binds it",
			"no evidence vouches for the init data: the relying party cannot tell by which configuration this pod was started")
	default:
		r.fail(foreign, "the evidence vouches for other init data: %s", status.InitData)
	}
	pcr, err := podvm.ReadFileMax(d.Host.Path(pcr8), 256)
	if err != nil {
		return // no TPM, or a kernel that does not show it
	}
	switch got := strings.ToLower(strings.TrimSpace(string(pcr))); {
	case got == extended(doc.Digest()):
		r.ok("PCR 8 holds it")
	case strings.Trim(got, "0") == "":
		r.warn("systemctl status process-user-data: it extends PCR 8", "PCR 8 is empty")
	default:
		r.warn("compare with the TPM's event log: the boot loader may extend PCR 8, too", "PCR 8 holds something else, %s", got)
	}
}

// extended is what PCR 8 holds after the digest of init data, of which a bank of
// SHA-256 takes 32 bytes.
// Source: cloud-api-adaptor src/cloud-api-adaptor/podvm/mkosi.skeleton at fbdde756,
// process-user-data.service.d/10-override.conf.
func extended(digest []byte) string {
	sum := sha256.Sum256(append(make([]byte, 32), digest[:min(32, len(digest))]...))
	return hex.EncodeToString(sum[:])
}
