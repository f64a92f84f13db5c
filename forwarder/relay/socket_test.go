package relay

import (
	"bytes"
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sealpod/sealpod/podvm/metrics"
)

// counting counts the writes of a connection.
type counting struct {
	net.Conn
	writes int
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes++
	return c.Conn.Write(p)
}

func TestSocketMakesOneReadOfRecordsThatCameTogether(t *testing.T) {
	client, server := tcpPair(t)
	socket := NewSocket(server)
	c, s := secure(t, client, socket)
	defer c.Close()
	defer s.Close()
	for range 5 {
		if _, err := c.Write([]byte("record ")); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, 100)
	var got string
	for len(got) < 35 {
		n, err := s.Read(p)
		if err != nil {
			t.Fatal(err)
		}
		n += socket.readMore(s, p[n:], n)
		got += string(p[:n])
		if n := socket.readMore(s, p, 0); n != 0 {
			t.Errorf("%d bytes more", n)
		}
	}
	if got != strings.Repeat("record ", 5) {
		t.Errorf("got %q", got)
	}
	// What reading more runs into is no end, and an end is not lost.
	if _, err := c.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	c.Close()
	n, err := s.Read(p)
	for n < 4 && err == nil {
		var more int
		more, err = s.Read(p[n:])
		n += more
	}
	if n != 4 || socket.readMore(s, p, 0) != 0 {
		t.Errorf("got %d bytes, %v", n, err)
	}
	if _, err := s.Read(p); err == nil {
		t.Error("no end")
	}
}

func TestSocketMakesFewWritesOfALargeFrame(t *testing.T) {
	client, server := tcpPair(t)
	count := &counting{Conn: server}
	c, s := secure(t, client, NewSocket(count))
	defer c.Close()
	w := newWriter(s, hostTime)
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB, 64 records
	errs := make(chan error, 1)
	count.writes = 0
	go func() {
		_, err := w.send(want)
		errs <- err
		s.Close()
	}()
	got := new(bytes.Buffer)
	if _, err := got.ReadFrom(c); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("got %d bytes, %v", got.Len(), err)
	}
	if err := <-errs; err != nil || count.writes > 12 {
		t.Errorf("%d writes, %v", count.writes, err)
	}
}

// A peer that reads nothing of a large reply is cut off under TLS as well.
func TestSocketsPeerThatDoesNotReadIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		c, s := secure(t, client, NewSocket(server))
		w := newWriter(s, hostTime)
		if _, err := w.send(make([]byte, 1<<20)); !errors.Is(err, ErrNotReading) {
			t.Errorf("got %v", err)
		}
		c.Close()
		s.Close()
	})
}

func TestMetrics(t *testing.T) {
	path := socket(t)
	startAgent(t, path)
	set := metrics.New("sealpod")
	c := client(t, Config{Dial: dialTo(path), Metrics: NewMetrics(set), Methods: map[string]Method{
		"/" + service + "/Meta": func(_ context.Context, p []byte) ([]byte, error) { return p, nil },
		"/" + service + "/Fail": func(context.Context, []byte) ([]byte, error) { return nil, errors.New("no") },
	}})
	for _, method := range []string{"Echo", "Meta", "Fail", "Echo"} {
		_ = c.Call(within(t, 10*time.Second), service, method, text("x"), &bytesValue{})
	}
	for _, want := range []string{
		"connections 1", "agent_dials_total 1", "agent_dial_failures_total 0", "agent_losses_total 0",
		"calls_passed_total 2", "calls_intercepted_total 2", "calls_failed_total 1",
	} {
		if !strings.Contains(set.Text(), "\nsealpod_forwarder_"+want+"\n") {
			t.Errorf("no %s in\n%s", want, set.Text())
		}
	}
	if strings.Contains(set.Text(), "bytes_total 0") {
		t.Error("no bytes are counted")
	}
}
