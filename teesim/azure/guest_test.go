package azure

import (
	"bytes"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
)

// guest is a client of the TPM with one connection.
type guest struct{ net.Conn }

func dial(t testing.TB, m machine) guest {
	t.Helper()
	conn, err := net.Dial("unix", m.tpm())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return guest{conn}
}

// Send implements transport.TPM.
func (g guest) Send(cmd []byte) ([]byte, error) {
	if _, err := g.Write(cmd); err != nil {
		return nil, err
	}
	return readFrame(g, func() {})
}

// writeReportData does what a guest does to get a new report.
func writeReportData(t transport.TPM, data []byte) error {
	if name, err := nvName(t, reportDataIndex); err == nil {
		if _, err := (tpm2.NVUndefineSpace{
			AuthHandle: empty(tpm2.TPMRHOwner), NVIndex: tpm2.NamedHandle{Handle: reportDataIndex, Name: name},
		}).Execute(t); err != nil {
			return err
		}
	}
	if err := defineNV(t, reportDataIndex, len(data), tpm2.TPMANV{OwnerRead: true, OwnerWrite: true}); err != nil {
		return err
	}
	return writeNV(t, empty(tpm2.TPMRHOwner), reportDataIndex, data)
}

func defineNV(t transport.TPM, index tpm2.TPMHandle, size int, attributes tpm2.TPMANV) error {
	_, err := tpm2.NVDefineSpace{
		AuthHandle: empty(tpm2.TPMRHOwner),
		PublicInfo: tpm2.New2B(tpm2.TPMSNVPublic{
			NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: uint16(size), Attributes: attributes,
		}),
	}.Execute(t)
	return err
}

func nvName(t transport.TPM, index tpm2.TPMHandle) (tpm2.TPM2BName, error) {
	out, err := tpm2.NVReadPublic{NVIndex: index}.Execute(t)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	return out.NVName, nil
}

func writeNV(t transport.TPM, by tpm2.AuthHandle, index tpm2.TPMHandle, data []byte) error {
	name, err := nvName(t, index)
	if err != nil {
		return err
	}
	_, err = tpm2.NVWrite{
		AuthHandle: by, NVIndex: tpm2.NamedHandle{Handle: index, Name: name}, Data: tpm2.TPM2BMaxNVBuffer{Buffer: data},
	}.Execute(t)
	return err
}

// readReport returns the HCL report, and calls between after each part of it.
func readReport(t testing.TB, tpm transport.TPM, between ...func() error) []byte {
	t.Helper()
	name, err := nvName(tpm, hclIndex)
	if err != nil {
		t.Fatal(err)
	}
	var report []byte
	for len(report) < hclSize {
		out, err := tpm2.NVRead{
			AuthHandle: empty(tpm2.TPMRHOwner), NVIndex: tpm2.NamedHandle{Handle: hclIndex, Name: name},
			Size: 512, Offset: uint16(len(report)),
		}.Execute(tpm)
		if err != nil {
			t.Fatal(err)
		}
		report = append(report, out.Data.Buffer...)
		for _, f := range between {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}
	}
	return report
}

// pipe copies standard input to a socket and what comes back to standard
// output, until standard input ends.
func pipe(path string) int {
	conn, err := net.Dial("unix", path)
	if err != nil {
		_, _ = io.WriteString(os.Stderr, err.Error())
		return 1
	}
	go func() { _, _ = io.Copy(os.Stdout, conn) }()
	_, _ = io.Copy(conn, os.Stdin)
	return 0
}

// startupCommand is one that every TPM answers at once, and how.
var startupCommand, startupAnswer = []byte("\x80\x01\x00\x00\x00\x0c\x00\x00\x01\x44\x00\x00"), refusal(tpm2.TPMRCInitialize)

// ping asks the TPM for a sign of life.
func ping(g guest) error {
	out, err := g.Send(startupCommand)
	if err == nil && !bytes.Equal(out, startupAnswer) {
		err = tpm2.TPMRC(codeOf(out))
	}
	return err
}
