package doctor

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sealpod/sealpod/attester"
	"github.com/sealpod/sealpod/attester/sample"
	"github.com/sealpod/sealpod/podvm"
)

// tee says which TEE this is and what told, and whether the agent agrees.
func (d *doctor) tee(ctx context.Context, r *Report) {
	signs := attester.Signs(ctx, attester.Options{Host: d.Host, Log: d.log})
	for _, s := range signs {
		r.ok("%s, detected by %s", s.TEE, s.By)
	}
	used, err := d.agentTEE(ctx)
	switch {
	case err != nil:
		r.warn("see the check of the sockets", "the attestation agent does not say which TEE it uses: %s", why(err))
	case used == sample.TEE && len(signs) > 0:
		r.fail("see allow in [attester] of aa.toml and SEALPOD_ATTESTERS", "the attestation agent makes sample evidence although there is a TEE")
	case used == sample.TEE:
		r.warn("on a confidential VM: does the image's kernel have the driver (/dev/tdx_guest, sev-guest, tpm)?",
			"no TEE: evidence of type sample proves nothing to a relying party")
	case len(signs) == 0:
		r.warn("is the device visible to the attestation agent alone?", "the attestation agent uses %s, which is not detected from here", used)
	case used != signs[0].TEE:
		r.warn("see allow in [attester] of aa.toml", "the attestation agent uses %s", used)
	default:
		r.ok("the attestation agent uses it")
	}
}

// Bounds of what is taken for a clock that runs.
const (
	earliest  = 2025 // year
	maxSkew   = 30 * time.Second
	fatalSkew = 5 * time.Minute
)

// clock compares the time with that of the relying party: certificates and tokens
// are valid for a time.
func (d *doctor) clock(ctx context.Context, r *Report) {
	const hint = "the VM has no working time source: look at timesyncd or chrony, on Hyper-V and KVM at their PTP clock"
	now := time.Now()
	if now.Year() < earliest {
		r.fail(hint, "the clock says %s", now.UTC().Format(time.RFC3339))
	}
	var t unix.Timex
	if state, err := unix.Adjtimex(&t); err == nil && (state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0) {
		r.warn(hint, "the kernel says that its clock is not synchronised")
	}
	date, err := d.kbsDate(ctx)
	if err != nil {
		r.add(r.orOK(), "", "%s; not compared with the relying party: %s", now.UTC().Format(time.RFC3339), why(err))
		return
	}
	switch skew := time.Since(date).Round(time.Second); {
	case skew.Abs() > fatalSkew:
		r.fail(hint, "the clock is %v from that of the relying party; certificates and tokens will not be valid", skew)
	case skew.Abs() > maxSkew:
		r.warn(hint, "the clock is %v from that of the relying party", skew)
	default:
		r.ok("%s, as the relying party has it", now.UTC().Format(time.RFC3339))
	}
}

// orOK is OK unless something was found already.
func (r *Report) orOK() Status {
	if len(r.Findings) > 0 {
		return Skipped
	}
	return OK
}

// room is how much must be free somewhere, in bytes: less than little is a warning,
// less than none a failure.
type room struct {
	path, what   string
	little, none uint64
	hint         string
}

// space looks at what fills up: the image store, /run, and memory, which is behind
// both when there is no scratch disk.
func (d *doctor) space(_ context.Context, r *Report) {
	for _, w := range []room{
		{d.Images, "images in " + d.Images, 1 << 30, 128 << 20, "images need room for their layers, unpacked: more memory, or scratch space (scratch-space.marker) on a larger disk"},
		{d.Host.Path("/run"), "/run", 64 << 20, 8 << 20, "/run holds sockets, keys and configuration: something else fills it (du -xsh /run/*)"},
	} {
		var st unix.Statfs_t
		at, err := w.path, error(nil)
		for ; ; at = filepath.Dir(at) { // the store is made by the first pull
			if err = unix.Statfs(at, &st); !errors.Is(err, unix.ENOENT) || at == "/" {
				break
			}
		}
		if err != nil {
			r.warn("", "%s: %v", w.what, err)
			continue
		}
		free, size := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
		text := fmt.Sprintf("%s: %s of %s free", w.what, bytes(free), bytes(size))
		switch {
		case size > 0 && free < w.none:
			r.fail(w.hint, "%s", text)
		case size > 0 && free < w.little:
			r.warn(w.hint, "%s", text)
		case st.Files > 0 && st.Ffree*100 < st.Files:
			r.warn("too many small files", "%s, but only %d of %d inodes", text, st.Ffree, st.Files)
		default:
			r.ok("%s", text)
		}
	}
	available, err := d.memory()
	switch {
	case err != nil:
		r.warn("", "memory: %v", err)
	case available < 64<<20:
		r.warn("a larger instance type, or less in memory", "memory: %s available", bytes(available))
	default:
		r.ok("memory: %s available", bytes(available))
	}
}

// memory is what could be used without swapping, in bytes.
func (d *doctor) memory() (uint64, error) {
	raw, err := podvm.ReadFileMax(d.Host.Path("/proc/meminfo"), 64<<10)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 50)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("the kernel (%s) does not say", runtime.GOOS)
}

func bytes(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// bundles are where Go looks for certificates, in its order.
// Source: crypto/x509/root_linux.go of Go 1.26.
var bundles = []string{
	"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem",
	"/etc/pki/tls/cacert.pem", "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem", "/etc/ssl/cert.pem",
}

// ca looks at the certificates that servers are verified against.
func (d *doctor) ca(_ context.Context, r *Report) {
	at := bundles
	if file := d.Host.Getenv("SSL_CERT_FILE"); file != "" {
		at = []string{file}
	}
	found := false
	for _, path := range at {
		raw, err := podvm.ReadFileMax(d.Host.Path(path), 16<<20)
		if err != nil {
			continue
		}
		found = true
		d.certificates(r, path, raw, "install ca-certificates in the image again")
		break
	}
	if !found {
		r.warn("install the package ca-certificates in the image, or give the relying party's certificate in cert of [token_configs.kbs] and kbs_cert",
			"no certificates of the system: TLS works only with those of the configuration")
	}
	if c, _, err := d.agentConfig(); err == nil && c.Tokens.KBS != nil && c.Tokens.KBS.Cert != "" {
		d.certificates(r, "cert in [token_configs.kbs]", []byte(c.Tokens.KBS.Cert), "put the relying party's current certificate into aa.toml")
	}
}

// certificates counts those that are valid.
func (d *doctor) certificates(r *Report, where string, raw []byte, hint string) {
	now := time.Now()
	valid, broken, expired := 0, 0, 0
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		switch cert, err := x509.ParseCertificate(block.Bytes); {
		case err != nil:
			broken++
		case now.After(cert.NotAfter) || now.Before(cert.NotBefore):
			expired++
		default:
			valid++
		}
	}
	switch {
	case valid == 0:
		r.fail(hint, "%s: no valid certificate, %d expired or not yet valid, %d malformed", where, expired, broken)
	case broken > 0:
		r.warn(hint, "%s: %d valid certificates, %d malformed", where, valid, broken)
	default:
		r.ok("%s: %d valid certificates", where, valid)
	}
}
