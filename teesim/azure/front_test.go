package azure

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
)

func header(tag uint16, size, code uint32) []byte {
	out := binary.BigEndian.AppendUint16(nil, tag)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(out, size), code)
}

func TestHostileClientsDoNotStopAGoodOne(t *testing.T) {
	m := boot(t, Options{limits: limits{clients: 8, idle: time.Second, transfer: 100 * time.Millisecond}})
	good := dial(t, m)
	for name, bytes := range map[string][]byte{
		"an unknown tag":               header(0x8003, 12, 0x144),
		"a tag of TPM 1.2":             header(0x00c1, 10, 0x50),
		"swtpm's own, with a locality": {0, 0, 0, 8, 4, 0, 0, 0, 10, 0x80, 1, 0, 0, 0, 10, 0, 0, 1, 0x44},
		"no size":                      header(0x8001, 0, 0x144),
		"a size below the header's":    header(0x8001, 9, 0x144),
		"a size above 4096":            header(0x8001, 4097, 0x144),
		"4 GiB":                        header(0x8002, 0xffffffff, 0x144),
		"HTTP":                         []byte("GET / HTTP/1.1\r\nHost: tpm\r\n\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			g := dial(t, m)
			if _, err := g.Write(bytes); err != nil {
				t.Fatal(err)
			}
			answer, err := io.ReadAll(g)
			if want := refusal(tpm2.TPMRCCommandSize); !slices.Equal(answer, want) || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
				// What was not read makes the kernel reset the connection.
				var reset *net.OpError
				if !errors.As(err, &reset) {
					t.Errorf("got %x, %v, want %x", answer, err, want)
				}
			}
			if err := ping(good); err != nil {
				t.Error(err)
			}
		})
	}
	for name, start := range map[string][]byte{
		"half a header":  {0x80, 1, 0},
		"half a command": append(header(0x8001, 4096, 0x144), 1, 2, 3),
	} {
		t.Run(name, func(t *testing.T) {
			g := dial(t, m)
			if _, err := g.Write(start); err != nil {
				t.Fatal(err)
			}
			if err := ping(good); err != nil {
				t.Error(err)
			}
			if answer, err := io.ReadAll(g); len(answer) != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %x, %v, want an end without an answer", answer, err)
			}
		})
	}
	t.Run("never reading", func(t *testing.T) {
		g := dial(t, m)
		command := append(header(0x8001, 22, 0x17a), 0, 0, 0, 6, 0, 0, 1, 0, 0, 0, 0, 127) // GetCapability
		var err error
		for err == nil { // until the front has given up
			_, err = g.Write(command)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("it is still served")
		}
		if err := ping(good); err != nil {
			t.Error(err)
		}
	})
}

func TestAFloodOfConnectionsIsServedInTurn(t *testing.T) {
	m := boot(t, Options{limits: limits{clients: 4, idle: 20 * time.Millisecond, transfer: time.Second}})
	for range 40 {
		dial(t, m) // and stays
	}
	if err := ping(dial(t, m)); err != nil {
		t.Error(err)
	}
}

func TestRoomIsMadeByTheOneIdleLongest(t *testing.T) {
	f := &front{limits: limits{clients: 3, idle: time.Minute}, log: slog.New(slog.DiscardHandler), clients: map[*client]struct{}{}}
	add := func(idle time.Duration, busy bool) *client {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		c := &client{conn: ours, used: time.Now().Add(-idle), busy: busy}
		f.clients[c] = struct{}{}
		return c
	}
	add(time.Hour, true)
	young := add(10*time.Second, false)
	if wait := f.makeRoom(); wait != 0 {
		t.Errorf("waits %s although there is room", wait)
	}
	add(time.Second, false)
	if wait := f.makeRoom(); wait < 40*time.Second || wait > 50*time.Second || len(f.clients) != 3 {
		t.Errorf("waits %s for clients who are at work, with %d", wait, len(f.clients))
	}
	young.used = young.used.Add(-time.Minute)
	if wait := f.makeRoom(); wait != 0 {
		t.Errorf("waits %s", wait)
	}
	if _, there := f.clients[young]; there || len(f.clients) != 2 {
		t.Error("another than the one idle longest had to go")
	}
	if _, err := young.conn.Write([]byte{1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("its connection is open: %v", err)
	}
	f.limits.clients = 1
	for c := range f.clients {
		c.busy = true
	}
	if wait := f.makeRoom(); wait != time.Minute {
		t.Errorf("waits %s although all are busy", wait)
	}
}

func TestClientsShareTheTPM(t *testing.T) {
	m := boot(t, Options{})
	key, err := tpm2.ReadPublic{ObjectHandle: akHandle}.Execute(dial(t, m))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			g := dial(t, m)
			for range 10 {
				data := bytes.Repeat([]byte{byte(i)}, 16)
				out, err := tpm2.Quote{
					SignHandle:     tpm2.AuthHandle{Handle: akHandle, Name: key.Name, Auth: tpm2.PasswordAuth(nil)},
					QualifyingData: tpm2.TPM2BData{Buffer: data},
					InScheme:       tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull},
					PCRSelect: tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
						{Hash: tpm2.TPMAlgSHA256, PCRSelect: []byte{0xff, 0xff, 0xff}}}},
				}.Execute(g)
				if err != nil {
					t.Error(err)
					return
				}
				if attest, err := out.Quoted.Contents(); err != nil || !bytes.Equal(attest.ExtraData.Buffer, data) {
					t.Errorf("the answer for another: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

func sequence(g guest) (tpm2.TPMHandle, error) {
	out, err := tpm2.HashSequenceStart{HashAlg: tpm2.TPMAlgSHA256}.Execute(g)
	if err != nil {
		return 0, err
	}
	return out.SequenceHandle, nil
}

func TestWhatAClientLeavesLoadedIsFlushed(t *testing.T) {
	m := boot(t, Options{})
	greedy, other := dial(t, m), dial(t, m)
	for range maxObjects {
		if _, err := sequence(greedy); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if _, _, err := tpm2.HMACSession(greedy, tpm2.TPMAlgSHA256, 16); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tpm2.HMACSession(other, tpm2.TPMAlgSHA256, 16); err == nil {
		t.Error("a fourth session")
	}
	if _, err := sequence(other); !errors.Is(err, tpm2.TPMRCObjectMemory) {
		t.Errorf("loading a third object: %v", err)
	}
	// Both persistent keys fit one after the other, whatever is loaded.
	for _, key := range []tpm2.TPMHandle{akHandle, ekHandle} {
		if _, err := (tpm2.ReadPublic{ObjectHandle: key}).Execute(other); err != nil {
			t.Errorf("%#x: %v", uint32(key), err)
		}
	}
	// A session that was saved does not count as an object.
	sessions, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: 0x02000000, PropertyCount: 1}.Execute(greedy)
	if err != nil {
		t.Fatal(err)
	}
	session, err := sessions.CapabilityData.Data.Handles()
	if err != nil || len(session.Handle) != 1 {
		t.Fatalf("%v, %v", session, err)
	}
	saved, err := tpm2.ContextSave{SaveHandle: session.Handle[0]}.Execute(greedy)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.ContextLoad{Context: saved.Context}).Execute(greedy); err != nil {
		t.Errorf("loading a session: %v", err)
	}
	greedy.Close()
	waitUntil(t, func() bool { _, err := sequence(other); return err == nil })
	waitUntil(t, func() bool { _, _, err := tpm2.HMACSession(other, tpm2.TPMAlgSHA256, 16); return err == nil })
	// One that was flushed by its client is not flushed for another later.
	h, err := sequence(other)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (tpm2.FlushContext{FlushHandle: h}).Execute(other); err != nil {
		t.Fatal(err)
	}
	third := dial(t, m)
	again, err := sequence(third)
	if err != nil || again != h {
		t.Fatalf("%#x, %v, want %#x again", again, err, h)
	}
	other.Close()
	waitUntil(t, func() bool { _, _, err := tpm2.HMACSession(third, tpm2.TPMAlgSHA256, 16); return err == nil })
	if _, err := (tpm2.FlushContext{FlushHandle: again}).Execute(third); err != nil {
		t.Errorf("somebody else flushed it: %v", err)
	}
}

// The TPM itself says which commands load something.
func TestLoadersAreAllThereAre(t *testing.T) {
	m := boot(t, Options{})
	out, err := tpm2.GetCapability{Capability: tpm2.TPMCapCommands, Property: 0, PropertyCount: 255}.Execute(dial(t, m))
	if err != nil {
		t.Fatal(err)
	}
	commands, err := out.CapabilityData.Data.Command()
	if err != nil {
		t.Fatal(err)
	}
	var got []tpm2.TPMCC
	for _, c := range commands.CommandAttributes {
		if c.RHandle {
			got = append(got, tpm2.TPMCC(c.CommandIndex))
		}
	}
	want := slices.Sorted(slices.Values(loaders))
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the TPM says %x, want %x", got, want)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(startupCommand)
	f.Add(append(slices.Clone(startupCommand), startupCommand...))
	f.Add(header(0x8002, 0xffffffff, 0))
	f.Add(header(0x8001, 9, 0))
	f.Add([]byte{0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		r, started := bytes.NewReader(b), false
		frame, err := readFrame(r, func() { started = true })
		if started != (len(b) > 0) {
			t.Errorf("started is %v after %d bytes", started, len(b))
		}
		if err != nil {
			if errors.Is(err, io.EOF) != (len(b) == 0) {
				t.Errorf("%v after %d bytes", err, len(b))
			}
			return
		}
		if !bytes.HasPrefix(b, frame) || len(b)-r.Len() != len(frame) || len(frame) < headerSize || len(frame) > maxFrameSize ||
			binary.BigEndian.Uint32(frame[2:]) != uint32(len(frame)) || frame[0] != 0x80 {
			t.Errorf("%x is not a frame at the start of %x", frame, b)
		}
		codeOf(frame)
		startsReport(frame)
		for i := range len(frame) + 1 {
			handleAt(frame, i)
		}
	})
}
