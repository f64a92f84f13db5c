package server

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/kbs"
)

const uri = "kbs:///default/key/1"

// request matches the end of every error text.
var request = regexp.MustCompile(` \(request [0-9a-f]{8}\)$`)

// wantFault fails the test unless st is INTERNAL with exactly this text before
// the request id.
func wantFault(t *testing.T, st *status.Status, text string) {
	t.Helper()
	id := request.FindString(st.Message())
	if got := strings.TrimSuffix(st.Message(), id); st.Code() != codes.Internal || id == "" || got != text {
		t.Fatalf("%v %q, want INTERNAL %q and a request id", st.Code(), st.Message(), text)
	}
}

func TestHundredResourcesThroughTheSocketCostOneToken(t *testing.T) {
	w := newWorld(t)
	for range 100 {
		if got, st := w.get(uri); string(got) != "secret one" {
			t.Fatal(st)
		}
	}
	if n := w.aa.Tokens.Load(); n != 1 {
		t.Errorf("%d GetToken calls, want 1", n)
	}
}

func TestGetResourceErrors(t *testing.T) {
	tests := map[string]struct {
		uri, text string
		change    func(*Config)
		answer    http.HandlerFunc
	}{
		"wrong URI": {uri: "s3://bucket/key", text: textResource + ": not a resource URI of the form kbs:///repository/type/tag"},
		"empty URI": {uri: "", text: textResource + ": not a resource URI of the form kbs:///repository/type/tag"},
		"missing":   {uri: "kbs:///default/key/2", text: textResource + ": no such resource: default/key/2"},
		"denied":    {uri: "kbs:///denied/key/1", text: textResource + ": access denied by the resource policy at the KBS"},
		"unusable KBS URL": {
			uri: uri, text: textKBC + ": the configured KBS URL or certificate is not usable",
			change: func(c *Config) { c.KBC.URL = "" },
		},
		"a redirecting server": {
			uri: uri, text: textResource + ": the server at URL redirects elsewhere; configure the address of the KBS itself",
			answer: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(307) },
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) {
				if tt.change != nil {
					tt.change(c)
				}
			})
			if tt.answer != nil {
				w.kbs.Override = func(rw http.ResponseWriter, r *http.Request, _ *kbs.TEEKey) bool { tt.answer(rw, r); return true }
			}
			_, st := w.get(tt.uri)
			wantFault(t, st, strings.ReplaceAll(tt.text, "URL redirects", w.kbs.URL+" redirects"))
		})
	}
}

func TestResourceThatFitsNoMessageFailsThisCallOnly(t *testing.T) {
	w := newWorld(t)
	w.kbs.Set("big/key/1", make([]byte, 4<<20))
	w.kbs.Set("fits/key/1", make([]byte, maxReply))
	_, st := w.get("kbs:///big/key/1")
	wantFault(t, st, textResource+": the content is larger than 4 MiB")
	if got, st := w.get("kbs:///fits/key/1"); len(got) != maxReply {
		t.Fatal(st)
	}
}

func TestWrapKeyIsNotFound(t *testing.T) {
	w := newWorld(t)
	st := w.call(func(c *ttrpc.Client) error {
		_, err := keyprovider.NewKeyProviderServiceClient(c).WrapKey(context.Background(), &keyprovider.KeyProviderKeyWrapProtocolInput{})
		return err
	})
	if st.Code() != codes.NotFound || st.Message() != "/keyprovider.KeyProviderService/WrapKey is not supported" {
		t.Fatal(st)
	}
}

func TestUnknownMethodFailsThisCallOnly(t *testing.T) {
	w := newWorld(t)
	st := w.call(func(c *ttrpc.Client) error {
		return c.Call(context.Background(), "api.GetResourceService", "Nope", &datahub.GetResourceRequest{}, &datahub.GetResourceResponse{})
	})
	if st.Code() != codes.Unimplemented {
		t.Fatal(st)
	}
	if _, st := w.get(uri); st.Code() != codes.OK {
		t.Fatal(st)
	}
}

// annotated is a key provider request with a packet sealed under zero iv.
func annotated(t testing.TB, kek []byte, kid string) string {
	block, err := aes.NewCipher(kek)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	iv := make([]byte, 12)
	packet := mustJSON(t, map[string]any{"kid": kid, "wrap_type": "A256GCM", "iv": iv, "wrapped_data": gcm.Seal(nil, iv, []byte("{}"), nil)})
	return fmt.Sprintf(`{"op":"keyunwrap","keywrapparams":{},"keyunwrapparams":{"dc":null,"annotation":"%s"}}`, base64.StdEncoding.EncodeToString(packet))
}

func TestUnWrapKey(t *testing.T) {
	w := newWorld(t)
	kek := bytes.Repeat([]byte{7}, 32)
	w.kbs.Set("default/kek/1", kek)
	tests := map[string]struct{ in, out, fault string }{
		"a layer's key":      {in: annotated(t, kek, "kbs:///default/kek/1"), out: `{"keyunwrapresults":{"optsdata":[123,125]}}`},
		"no JSON":            {in: "x", fault: textUnwrapParse + ": not a JSON object"},
		"annotation missing": {in: `{"op":"","keywrapparams":{},"keyunwrapparams":{}}`, fault: textUnwrapParse + `: member "annotation" is missing`},
		"KEK missing":        {in: annotated(t, kek, "kbs:///default/kek/2"), fault: textUnwrap + ": no such resource: default/kek/2"},
		"KEK denied":         {in: annotated(t, kek, "kbs:///denied/kek/1"), fault: textUnwrap + ": access denied by the resource policy at the KBS"},
		"kid without scheme": {in: annotated(t, kek, "/default/kek/1"), fault: textUnwrap + ": not a resource URI of the form kbs:///repository/type/tag"},
		"another KEK":        {in: annotated(t, make([]byte, 32), "kbs:///default/kek/1"), fault: textUnwrap + ": the wrapped key does not open with the key at kbs:///default/kek/1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			out, st := w.unwrap(tt.in)
			if tt.fault != "" {
				wantFault(t, st, tt.fault)
			} else if string(out) != tt.out {
				t.Fatalf("%q, %v", out, st)
			}
		})
	}
}

func TestConcurrentCallsWithOneFailing(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			if i == 40 {
				if _, st := w.get("kbs:///denied/key/1"); st.Code() != codes.Internal {
					t.Error(st)
				}
			} else if got, st := w.get(uri); string(got) != "secret one" {
				t.Errorf("%q, %v", got, st)
			}
		})
	}
	wg.Wait()
	if n := w.aa.Tokens.Load(); n != 1 {
		t.Errorf("%d GetToken calls, want 1", n)
	}
}

// frame is a ttrpc message with the length it claims.
func frame(claimed int, stream uint32, kind byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(claimed))
	b = binary.BigEndian.AppendUint32(b, stream)
	return append(append(b, kind, 0), body...)
}

func TestHostileFramesHarmNobodyElse(t *testing.T) {
	w := newWorld(t)
	junk := bytes.Repeat([]byte{0xff}, 64)
	for name, sent := range map[string][]byte{
		"garbage":                     junk,
		"half a header":               {0, 0, 0},
		"a request that is no proto":  frame(len(junk), 1, 1, junk),
		"an even stream":              frame(0, 2, 1, nil),
		"data for no stream":          frame(0, 1, 3, nil),
		"an unknown message type":     frame(0, 1, 9, nil),
		"5 MiB announced and sent":    frame(5<<20, 1, 1, make([]byte, 5<<20)),
		"4 GiB announced, cut short":  frame(1<<32-1, 1, 1, junk),
		"a request announced, no end": frame(100, 1, 1, junk),
	} {
		t.Run(name, func(t *testing.T) {
			var d net.Dialer
			c, err := d.DialContext(t.Context(), "unix", w.path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close() //nolint:errcheck // a test's end
			if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			// The server may hang up before it has read all of it.
			_, _ = c.Write(sent)
			if err := c.(*net.UnixConn).CloseWrite(); err == nil {
				_, _ = io.Copy(io.Discard, c)
			}
			if got, st := w.get(uri); string(got) != "secret one" {
				t.Fatalf("another connection: %v", st)
			}
		})
	}
}

func TestKBSAndAgentRestartAreNotSeenByCallers(t *testing.T) {
	w := newWorld(t)
	for _, event := range []func(){
		func() {},
		func() { w.kbs.Forget(); w.kbs.CloseClientConnections() },
		func() { w.aa.Stop(); w.aa.Start(t); w.kbs.Forget() },
	} {
		event()
		if got, st := w.get(uri); string(got) != "secret one" {
			t.Fatal(st)
		}
	}
}

func BenchmarkGetResource(b *testing.B) {
	w := newWorld(b)
	b.ReportAllocs()
	for b.Loop() {
		if _, st := w.get(uri); st.Code() != codes.OK {
			b.Fatal(st)
		}
	}
}

func BenchmarkUnWrapKey(b *testing.B) {
	w := newWorld(b)
	kek := bytes.Repeat([]byte{7}, 32)
	w.kbs.Set("default/kek/1", kek)
	in := annotated(b, kek, "kbs:///default/kek/1")
	b.ReportAllocs()
	for b.Loop() {
		if _, st := w.unwrap(in); st.Code() != codes.OK {
			b.Fatal(st)
		}
	}
}
