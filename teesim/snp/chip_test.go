package snp

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-sev-guest/kds"
)

var products = []string{Milan, Genoa, Turin}

func open(t *testing.T, dir string, o Options) *Chip {
	t.Helper()
	c, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// public is all that anybody sees of an identity.
func public(t *testing.T, c *Chip) []byte {
	t.Helper()
	ark, ask, asvk := c.Roots()
	vcek, err := c.VCEK(c.product.current())
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(c.HardwareID(), ark.Raw, ask.Raw, asvk.Raw, vcek.Raw)
}

func TestSecondOpenIsTheSameChip(t *testing.T) {
	dir := t.TempDir()
	for _, product := range products {
		first := public(t, open(t, dir, Options{Product: product}))
		later := func() time.Time { return time.Now().AddDate(1, 0, 0) }
		if !bytes.Equal(first, public(t, open(t, dir, Options{Product: product, Now: later}))) {
			t.Errorf("%s: another chip", product)
		}
		if bytes.Equal(first, public(t, open(t, t.TempDir(), Options{Product: product}))) {
			t.Errorf("%s: the same chip elsewhere", product)
		}
	}
}

func TestManyOpensAtOnceAreOneChip(t *testing.T) {
	dir := t.TempDir()
	var mu sync.Mutex
	seen := map[string]bool{}
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			c, err := Open(dir, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			seen[hex.EncodeToString(c.HardwareID())] = true
		})
	}
	group.Wait()
	if len(seen) != 1 {
		t.Errorf("%d chips", len(seen))
	}
}

func TestFilesOfAnIdentity(t *testing.T) {
	dir := t.TempDir()
	c := open(t, dir, Options{Product: Turin})
	store := fmt.Sprintf("trust/vcek/%x/", c.HardwareID())
	want := map[string]fs.FileMode{
		"keys/snp-Turin.json": 0o600, "trust/snp-Turin.pem": 0o644,
		store + "bl04_tee01_snp22_ucode213_fmc01_vcek.der": 0o644, store + "bl04_tee01_snp14_ucode209_fmc01_vcek.der": 0o644,
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if mode, ok := want[rel]; !ok || info.Mode().Perm() != mode {
			t.Errorf("%s has mode %o", rel, info.Mode())
		}
		delete(want, rel)
		return err
	})
	if err != nil || len(want) > 0 {
		t.Errorf("missing %v, %v", want, err)
	}
	if info, err := os.Stat(filepath.Join(dir, "keys")); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("keys: %v, %v", info, err)
	}
	secret, err := os.ReadFile(filepath.Join(dir, "keys/snp-Turin.json"))
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, "trust/snp-Turin.pem"))
	if err != nil || strings.Count(string(pem), "BEGIN CERTIFICATE") != 3 || bytes.Contains(pem, secret[10:40]) || bytes.Contains(pem, []byte("PRIVATE")) {
		t.Errorf("%s, %v", pem, err)
	}
}

func TestChipsThatCannotBe(t *testing.T) {
	for name, o := range map[string]Options{"product": {Product: "Rome"}, "report version": {ReportVersion: 4}} {
		if _, err := Open("", o); err == nil {
			t.Error(name)
		}
	}
	for name, text := range map[string]string{"no JSON": "x", "no secret": `{"made":"2026-01-01T00:00:00Z"}`, "no date": `{"secret":"` + strings.Repeat("A", 43) + `="}`} {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "keys"), 0o700), os.WriteFile(filepath.Join(dir, "keys/snp-Milan.json"), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir, Options{}); err == nil {
			t.Error(name)
		}
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(file, Options{}); err == nil {
		t.Error("a file as the directory")
	}
}

func TestCertificatesAreLikeThoseOfAMD(t *testing.T) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	serials := map[string][3]int64{Milan: {65536, 65537, 65793}, Genoa: {131072, 131073, 131329}, Turin: {196608, 196609, 196865}}
	for _, product := range products {
		c := open(t, "", Options{Product: product, Now: func() time.Time { return now }})
		ark, ask, asvk := c.Roots()
		for i, cert := range []*x509.Certificate{ark, ask, asvk} {
			name := []string{"ARK-", "SEV-", "SEV-VLEK-"}[i] + product
			if cert.Subject.CommonName != name || cert.SerialNumber.Int64() != serials[product][i] || cert.CheckSignatureFrom(ark) != nil {
				t.Errorf("%s: %v", name, cert.Subject)
			}
			if !cert.NotBefore.Equal(now.AddDate(-5, 0, 0)) || !cert.NotAfter.Equal(now.AddDate(5, 0, 0)) {
				t.Errorf("%s: valid from %s to %s", name, cert.NotBefore, cert.NotAfter)
			}
		}
		tcb := c.product.stale()
		vcek, err := c.VCEK(tcb)
		if err != nil || vcek.CheckSignatureFrom(ask) != nil || vcek.Subject.CommonName != "SEV-VCEK" {
			t.Fatalf("%s: %v", product, err)
		}
		vlek, err := c.Endorse(nil, tcb)
		if err != nil || vlek.Certificate.CheckSignatureFrom(asvk) != nil || vlek.Certificate.Subject.CommonName != "SEV-VLEK" {
			t.Fatalf("%s: %v", product, err)
		}
		if product == Turin {
			continue // which the other reader does not know
		}
		// Another reader of the extensions than our verifier.
		e, err := kds.VcekCertificateExtensions(vcek)
		if err != nil || !bytes.Equal(e.HWID, c.HardwareID()) || e.ProductName != c.product.stepping {
			t.Fatalf("%s: %+v, %v", product, e, err)
		}
		p := kds.DecomposeTCBVersion(e.TCBVersion)
		if p.BlSpl != tcb.Bootloader || p.TeeSpl != tcb.TEE || p.SnpSpl != tcb.SNP || p.UcodeSpl != tcb.Microcode {
			t.Errorf("%s: %+v", product, p)
		}
		if e, err = kds.VlekCertificateExtensions(vlek.Certificate); err != nil || e.CspID != "Simulator" || e.HWID != nil {
			t.Errorf("%s: %+v, %v", product, e, err)
		}
	}
}

func TestCRL(t *testing.T) {
	c := open(t, "", Options{})
	ark, ask, _ := c.Roots()
	next := time.Now().AddDate(0, 1, 0).UTC().Truncate(time.Second)
	der, err := c.Makers().ARK.CRL(next, ask)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil || list.CheckSignatureFrom(ark) != nil || !list.NextUpdate.Equal(next) || len(list.RevokedCertificateEntries) != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}
