package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/cmd/sealctl/internal/trust"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/relyingparty"
	"github.com/sealpod/sealpod/relyingparty/verifier"
)

// relyingPartyOptions are the flags of `sealctl relying-party`.
type relyingPartyOptions struct {
	listen, store, tlsCert, tlsKey, tokenFile, logLevel string
	insecureHTTP, newToken                              bool
	snpVCEK                                             []string
	tdxCollateral, simulator                            string
}

// relyingPartyCommand is `sealctl relying-party`: a KBS with an attestation
// service and its store in one process.
func relyingPartyCommand() *cobra.Command { return new(relyingPartyOptions).command() }

func (o *relyingPartyOptions) command() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "relying-party",
		Short: "Verify pods and release keys and secrets to them (KBS)",
		Long: `Run a Key Broker Service with its attestation service in one process.

Pods attest to it and get the resources its policy allows; the owner places
resources and policies with the admin token, which the first start on a store
makes and shows once. It speaks the protocol of Trustee's KBS (0.4.0): Trustee's
kbs-client works with it, and its guests do.

It verifies AMD SEV-SNP and Intel TDX, bare and as Azure has them, under the
roots of AMD and Intel, plain TPMs, and "sample" evidence of pods without a TEE.
The services of AMD and Intel are asked only when evidence needs them: for keys,
revocation lists and the state of TDX platforms. The answers are kept in memory,
lists and platforms until they expire. So after a start each service must answer
once, and until it does evidence of its hardware is refused; the log names it.
Without a way out, give --snp-vcek a directory and --tdx-collateral a file. With
a directory in the first place AMD is not asked for revocation lists: those in
the directory count, and none where it has none.

As installed it opens nothing to "sample", and resources to a genuine guest only
once its measurements are among the reference values ("affirming").

Plain HTTP is served on loopback only, unless --insecure-http says otherwise.`,
		Example: `  sealctl relying-party --store ./rp
  sealctl relying-party --store ./rp --admin-token-file admin.token --listen 0.0.0.0:8443 \
      --tls-cert server.crt --tls-key server.key
  sealctl relying-party --store ./rp --snp-vcek ./vceks --snp-vcek kds \
      --tdx-collateral https://pccs.example:8081
  kbs-client --url http://127.0.0.1:8080 config --admin-token-file admin.token \
      set-resource --path default/key/1 --resource-file key.bin`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd) },
	}
	f := cmd.Flags()
	f.StringVar(&o.listen, "listen", "127.0.0.1:8080", "`address` to listen on; port 0 takes a free one")
	f.StringVar(&o.store, "store", "", "`directory` for resources, policies and keys (required; made if missing)")
	f.StringVar(&o.tlsCert, "tls-cert", "", "PEM `file` with the server certificate chain")
	f.StringVar(&o.tlsKey, "tls-key", "", "PEM `file` with the server key")
	f.BoolVar(&o.insecureHTTP, "insecure-http", false, "allow plain HTTP on addresses others can reach")
	f.StringVar(&o.tokenFile, "admin-token-file", "", "write the admin token to this `file` (mode 0600) instead of showing it")
	f.BoolVar(&o.newToken, "new-admin-token", false, "make a new admin token; the old one stops working")
	f.StringArrayVar(&o.snpVCEK, "snp-vcek", []string{trust.AMDKDS}, "where the key of an SNP chip is looked up when the pod sent none: `source` "+
		`"kds" (AMD's server) or a directory with vcek/CHIP/vcek.der and, for revocations, crl/PRODUCT.der; more than one are asked in order`)
	f.StringVar(&o.tdxCollateral, "tdx-collateral", trust.IntelPCS, "where Intel's word on TDX platforms comes from: `source` "+
		`"pcs" (Intel's service), the https URL of a PCCS, or a JSON file of PcsClientTool`)
	f.StringVar(&o.simulator, "trust-simulator", "", "trust simulated TEEs, and only those: `directory` \"trust\" that sealctl tee-sim made; for trials")
	f.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn, error or off")
	return cmd
}

func (o relyingPartyOptions) run(cmd *cobra.Command) error {
	if o.store == "" {
		return fmt.Errorf("give --store DIRECTORY, where resources and keys are kept (%w)", cli.ErrUsage)
	}
	log, _, err := podvm.NewLogger(cmd.ErrOrStderr(), podvm.Host{}, "relying-party", o.logLevel)
	if err != nil {
		return fmt.Errorf("%w (%w)", err, cli.ErrUsage)
	}
	if err := podvm.NoCoreDumps(); err != nil {
		log.Warn("Core dumps stay possible", "err", err)
	}
	if o.simulator != "" && (cmd.Flags().Changed("snp-vcek") || cmd.Flags().Changed("tdx-collateral")) {
		return fmt.Errorf("--trust-simulator trusts no real TEE: give it without --snp-vcek and --tdx-collateral (%w)", cli.ErrUsage)
	}
	verifiers, err := o.verifiers()
	if err != nil {
		return err
	}
	if o.simulator != "" {
		log.Warn("Simulated TEEs are trusted, and no real ones: what is released here is protected by nothing", "trust", o.simulator)
	}
	ln, scheme, err := o.listener(cmd)
	if err != nil {
		return err
	}
	defer ln.Close() //nolint:errcheck // Serve closes it first
	rp, err := relyingparty.Open(relyingparty.Config{StoreDir: o.store, Log: log, Verifiers: verifiers, NewAdminToken: o.newToken})
	if err != nil {
		return err
	}
	err = o.announce(cmd.OutOrStdout(), scheme+"://"+ln.Addr().String(), rp)
	if err == nil {
		err = rp.Serve(cmd.Context(), ln)
	}
	return errors.Join(err, rp.Close())
}

// verifiers are the kinds of TEE that the flags say to trust.
func (o relyingPartyOptions) verifiers() ([]verifier.Verifier, error) {
	list, err := trust.Verifiers(trust.Options{SNPVCEK: o.snpVCEK, TDXCollateral: o.tdxCollateral, Simulator: o.simulator})
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", err, cli.ErrUsage)
	}
	return list, nil
}

// listener opens the address, with TLS if there is a certificate. Plain HTTP
// off loopback takes a flag.
func (o relyingPartyOptions) listener(cmd *cobra.Command) (net.Listener, string, error) {
	if (o.tlsCert == "") != (o.tlsKey == "") {
		return nil, "", fmt.Errorf("give both --tls-cert and --tls-key (%w)", cli.ErrUsage)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(cmd.Context(), "tcp", o.listen)
	if err != nil {
		return nil, "", fmt.Errorf("listening on %s: %w; try --listen 127.0.0.1:0", o.listen, err)
	}
	if o.tlsCert != "" {
		cert, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
		if err != nil {
			return nil, "", errors.Join(fmt.Errorf("loading the server certificate: %w", err), ln.Close())
		}
		return tls.NewListener(ln, &tls.Config{
			Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		}), "https", nil
	}
	if addr, ok := ln.Addr().(*net.TCPAddr); !o.insecureHTTP && (!ok || !addr.IP.IsLoopback()) {
		return nil, "", errors.Join(fmt.Errorf("plain HTTP on %s would send the admin token and the evidence in the clear: "+
			"give --tls-cert and --tls-key, or --insecure-http behind a TLS proxy (%w)", o.listen, cli.ErrUsage), ln.Close())
	}
	return ln, "http", nil
}

// announce says where the relying party is and how to use it. The admin token
// is known only after the start that made it.
func (o relyingPartyOptions) announce(w io.Writer, url string, rp *relyingparty.Server) error {
	token := rp.AdminToken()
	var line string
	switch {
	case len(token) > 0 && o.tokenFile != "":
		if err := replaceFile(o.tokenFile, token); err != nil {
			return fmt.Errorf("writing the admin token: %w; the token is lost, start again with --new-admin-token", err)
		}
		line = "written to " + o.tokenFile
	case len(token) > 0:
		line = string(token) + "  (shown this once)"
	default:
		line = "made by an earlier start; --new-admin-token replaces it"
	}
	_, err := fmt.Fprintf(w, `Relying party  %s
Admin token    %s
Verifies       %s

Point pods at it:
  aa.toml    [token_configs.kbs]
             url = %q
  cdh.toml   [kbc]
             name = "cc_kbc"
             url = %q

Ctrl-C stops it.
`, url, line, strings.Join(rp.TEEs(), ", "), url, url)
	if err != nil {
		return fmt.Errorf("writing to standard output: %w", err)
	}
	return nil
}

// replaceFile puts content where only this user reads it, whole or not at all. A
// file or link that is there is replaced, whatever its mode was.
func replaceFile(path string, content []byte) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}
