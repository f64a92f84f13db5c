package rest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
	"github.com/sealpod/sealpod/podvm/rpc"
)

func TestParseQuery(t *testing.T) {
	for in, want := range map[string]map[string]string{
		"":                {},
		"a=b&c":           {"a": "b", "c": ""},
		"a=1&a=2":         {"a": "2"},
		"a=x+y%20z%2B":    {"a": "x y z+"},
		"%61=1&&b=2=3":    {"a": "1", "b": "2=3"},
		"a=%&b=%4&c=%zz":  {"a": "%", "b": "%4", "c": "%zz"},
		"a=;b=1":          {"a": ";b=1"},
		"a=%ff%e4%bd%a0x": {"a": "\ufffd\u4f60x"},
	} {
		if got := parseQuery(in); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPathAndQuery(f *testing.F) {
	for _, s := range []string{"/info", "/cdh/resource/a/b/c?x", "/aa/evidence?runtime_data=%41&encoding=base64", "/aa/../cdh/resource/%2e%2e", "http://h/aa/token", "*"} {
		f.Add(s)
	}
	h, err := New(Config{Features: "all", CDHAddr: "unix:///nonexistent/c", AAAddr: "unix:///nonexistent/a", Log: cdhtest.Quiet, wait: time.Nanosecond})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, target string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader("GET " + target + " HTTP/1.1\r\nHost: x\r\n\r\n")))
		if err != nil {
			return
		}
		r.RemoteAddr = "127.0.0.1:1"
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		switch rec.Code {
		case 400, 404, 405, 500:
		default:
			t.Fatalf("%q: %d without anyone to answer", target, rec.Code)
		}
		if strings.ContainsAny(rec.Body.String(), "\r\n") {
			t.Fatalf("%q: more than a line: %q", target, rec.Body)
		}
	})
}

func FuzzEvent(f *testing.F) {
	f.Add([]byte(`{"domain":"d","operation":"o","content":"c"}`))
	f.Add([]byte(`{"domain":null}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		e, err := readEvent(bytes.NewReader(raw))
		if err != nil {
			return
		}
		var std struct{ Domain, Operation, Content *string }
		if json.Unmarshal(raw, &std) != nil {
			t.Fatalf("took %q, which is no JSON", raw)
		}
		_ = e
	})
}

// BenchmarkResource compares a resource by REST with the same call at the data
// hub's socket, which it ends in.
func BenchmarkResource(b *testing.B) {
	w := newWorld(b, "resource")
	b.Run("socket", func(b *testing.B) {
		c := rpc.NewClient(w.hub.path, time.Second)
		defer c.Close()
		b.ReportAllocs()
		for b.Loop() {
			err := c.Do(b.Context(), func(conn *ttrpc.Client) error {
				_, err := datahub.NewGetResourceServiceClient(conn).GetResource(b.Context(), &datahub.GetResourceRequest{ResourcePath: "kbs:///default/key/1"})
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("REST", func(b *testing.B) {
		url := "http://" + w.addr + "/cdh/resource/default/key/1"
		b.ReportAllocs()
		for b.Loop() {
			resp, err := w.http.Get(url)
			if err != nil {
				b.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				b.Fatal(err)
			}
			if err := resp.Body.Close(); err != nil {
				b.Fatal(err)
			}
		}
	})
}
