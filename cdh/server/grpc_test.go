package server

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/sealpod/sealpod/api/datahub"
	"github.com/sealpod/sealpod/api/keyprovider"
	"github.com/sealpod/sealpod/cdh/internal/cdhtest"
)

// wire describes one method as a client sees it that was made from upstream's
// .proto files: names, tags and types, and nothing of this repository.
// Source: guest-components protos/protos/confidential-data-hub/{api,keyprovider}.proto
// at 8246e5e.
type wire struct {
	pkg, service, method string
	in, out              []field
}

type field struct {
	name string
	kind descriptorpb.FieldDescriptorProto_Type
	many bool
}

const (
	isBytes = descriptorpb.FieldDescriptorProto_TYPE_BYTES
	isText  = descriptorpb.FieldDescriptorProto_TYPE_STRING
	isMap   = descriptorpb.FieldDescriptorProto_TYPE_MESSAGE // of texts
)

var wires = map[string]wire{
	"UnsealSecret": {"api", "SealedSecretService", "UnsealSecret", []field{{"secret", isBytes, false}}, []field{{"plaintext", isBytes, false}}},
	"GetResource":  {"api", "GetResourceService", "GetResource", []field{{"ResourcePath", isText, false}}, []field{{"Resource", isBytes, false}}},
	"SecureMount": {"api", "SecureMountService", "SecureMount",
		[]field{{"volume_type", isText, false}, {"options", isMap, true}, {"flags", isText, true}, {"mount_point", isText, false}}, nil},
	"PullImage": {"api", "ImagePullService", "PullImage", []field{{"image_url", isText, false}, {"bundle_path", isText, false}}, []field{{"manifest_digest", isText, false}}},
	"UnWrapKey": {"keyprovider", "KeyProviderService", "UnWrapKey",
		[]field{{"KeyProviderKeyWrapProtocolInput", isBytes, false}}, []field{{"KeyProviderKeyWrapProtocolOutput", isBytes, false}}},
	"WrapKey": {"keyprovider", "KeyProviderService", "WrapKey",
		[]field{{"KeyProviderKeyWrapProtocolInput", isBytes, false}}, []field{{"KeyProviderKeyWrapProtocolOutput", isBytes, false}}},
}

// messages builds the types of w's request and response.
func (w wire) messages(t testing.TB) (in, out *dynamicpb.Message) {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{Name: proto.String(w.method + ".proto"), Package: proto.String(w.pkg), Syntax: proto.String("proto3")}
	for name, fields := range map[string][]field{"In": w.in, "Out": w.out} {
		m := &descriptorpb.DescriptorProto{Name: proto.String(name)}
		for i, f := range fields {
			d := &descriptorpb.FieldDescriptorProto{Name: proto.String(f.name), Number: proto.Int32(int32(i + 1)), Type: f.kind.Enum(),
				Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
			if f.many {
				d.Label = descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()
			}
			if f.kind == isMap {
				d.TypeName = proto.String("." + w.pkg + "." + name + ".OptionsEntry")
				text := func(name string, n int32) *descriptorpb.FieldDescriptorProto {
					return &descriptorpb.FieldDescriptorProto{Name: proto.String(name), Number: proto.Int32(n), Type: isText.Enum(),
						Label: descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()}
				}
				m.NestedType = append(m.NestedType, &descriptorpb.DescriptorProto{Name: proto.String("OptionsEntry"),
					Field:   []*descriptorpb.FieldDescriptorProto{text("key", 1), text("value", 2)},
					Options: &descriptorpb.MessageOptions{MapEntry: proto.Bool(true)}})
			}
			m.Field = append(m.Field, d)
		}
		file.MessageType = append(file.MessageType, m)
	}
	fd, err := protodesc.NewFile(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return dynamicpb.NewMessage(fd.Messages().ByName("In")), dynamicpb.NewMessage(fd.Messages().ByName("Out"))
}

// ask calls a method with values for the request's fields in order and returns
// the first field of the response.
func ask(ctx context.Context, t testing.TB, conn *grpc.ClientConn, method string, values ...any) (protoreflect.Value, *status.Status) {
	t.Helper()
	w := wires[method]
	in, out := w.messages(t)
	for i, v := range values {
		f := in.Descriptor().Fields().ByNumber(protoreflect.FieldNumber(i + 1))
		switch v := v.(type) {
		case map[string]string:
			for k, x := range v {
				in.Mutable(f).Map().Set(protoreflect.ValueOfString(k).MapKey(), protoreflect.ValueOfString(x))
			}
		case []string:
			for _, x := range v {
				in.Mutable(f).List().Append(protoreflect.ValueOfString(x))
			}
		default:
			in.Set(f, protoreflect.ValueOf(v))
		}
	}
	st := status.Convert(conn.Invoke(ctx, "/"+w.pkg+"."+w.service+"/"+method, in, out))
	if f := out.Descriptor().Fields().ByNumber(1); f != nil {
		return out.Get(f), st
	}
	return protoreflect.Value{}, st
}

// grpc serves the hub at a port too and returns a client.
func (w *world) grpc(t testing.TB) *grpc.ClientConn {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	port, err := listenGRPC(ctx, GRPC{Listen: "127.0.0.1:0"}, cdhtest.Quiet)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- port.serve(ctx, w.hub, cdhtest.Quiet) }()
	conn := dialGRPC(t, port.Addr().String())
	t.Cleanup(func() {
		err := conn.Close()
		stop()
		if err = errors.Join(err, <-done); err != nil {
			t.Error(err)
		}
	})
	return conn
}

func dialGRPC(t testing.TB, addr string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestGRPCAnswers(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.SkipSealedSecretVerification = true })
	kek := bytes.Repeat([]byte{7}, 32)
	w.kbs.Set("default/kek/1", kek)
	p := &puller{}
	w.usePuller(p)
	conn := w.grpc(t)
	if got, st := ask(t.Context(), t, conn, "GetResource", uri); string(got.Bytes()) != "secret one" {
		t.Errorf("resource %q, %v", got, st)
	}
	if got, st := ask(t.Context(), t, conn, "UnWrapKey", []byte(annotated(t, kek, "kbs:///default/kek/1"))); string(got.Bytes()) != `{"keyunwrapresults":{"optsdata":[123,125]}}` {
		t.Errorf("key %q, %v", got, st)
	}
	sealed := "sealed.fakejwsheader." + base64.RawURLEncoding.EncodeToString(mustJSON(t, map[string]any{"version": "0.1.0", "type": "vault",
		"name": uri, "provider": "kbs", "provider_settings": map[string]any{}, "annotations": map[string]any{}})) + ".fakesignature"
	if got, st := ask(t.Context(), t, conn, "UnsealSecret", []byte(sealed)); string(got.Bytes()) != "secret one" {
		t.Errorf("secret %q, %v", got, st)
	}
	if got, st := ask(t.Context(), t, conn, "PullImage", "registry.example/app:1", "/bundle"); got.String() != digest || p.pulled[0] != "registry.example/app:1" {
		t.Errorf("digest %q, %v", got, st)
	}
}

// The texts are those of upstream's gRPC server, which differ from those of its
// ttrpc server where a request cannot be read.
func TestGRPCErrors(t *testing.T) {
	w := newWorld(t)
	w.usePuller(&puller{err: errors.New("on fire")})
	conn := w.grpc(t)
	for name, tt := range map[string]struct {
		method string
		in     []any
		text   string
	}{
		"no such resource":    {"GetResource", []any{"kbs:///default/key/2"}, textResource + ": no such resource: default/key/2"},
		"not a URI":           {"GetResource", []any{"s3://x"}, textResource + ": not a resource URI of the form kbs:///repository/type/tag"},
		"no request":          {"UnWrapKey", []any{[]byte("x")}, "[ERROR] CDH Unwrap Key failed: not a JSON object"},
		"no annotation":       {"UnWrapKey", []any{[]byte(`{"op":"","keywrapparams":{},"keyunwrapparams":{}}`)}, `[ERROR] CDH Unwrap Key failed: member "annotation" is missing`},
		"no such KEK":         {"UnWrapKey", []any{[]byte(annotated(t, make([]byte, 32), "kbs:///default/kek/2"))}, textUnwrap + ": no such resource: default/kek/2"},
		"a pull that fails":   {"PullImage", []any{"x", "/b"}, textPull + ": the image could not be pulled"},
		"a secret of nothing": {"UnsealSecret", []any{[]byte("x")}, textUnseal},
		"an unknown volume":   {"SecureMount", []any{"floppy", map[string]string{"a": "b"}, []string{"c"}, "/m"}, textMount + `: volume type "floppy": want`},
		"an unknown source":   {"SecureMount", []any{"block-device", map[string]string{"devicePath": "/d", "sourceType": "old"}, []string{"c"}, "/m"}, textMount + `: `},
		"no mount point":      {"SecureMount", []any{"block-device", map[string]string{}, []string{}, "m"}, textMount + `: `},
	} {
		t.Run(name, func(t *testing.T) {
			_, st := ask(t.Context(), t, conn, tt.method, tt.in...)
			id := request.FindString(st.Message())
			if st.Code() != codes.Internal || id == "" || !strings.HasPrefix(st.Message(), tt.text) || strings.Contains(st.Message(), "fire") {
				t.Errorf("%v %q", st.Code(), st.Message())
			}
		})
	}
	if _, st := ask(t.Context(), t, conn, "WrapKey", []byte("{}")); st.Code() != codes.Unimplemented || st.Message() != "WrapKey not implemented." {
		t.Errorf("WrapKey: %v", st)
	}
}

// Requests have the size ttrpc's have; answers fit what clients take by default.
func TestGRPCSizes(t *testing.T) {
	w := newWorld(t)
	w.kbs.Set("big/key/1", make([]byte, 4<<20))
	w.kbs.Set("fits/key/1", make([]byte, maxReply))
	conn := w.grpc(t)
	for size, want := range map[int]codes.Code{4<<20 - 16: codes.Internal, 4 << 20: codes.ResourceExhausted, 5 << 20: codes.ResourceExhausted} {
		if _, st := ask(t.Context(), t, conn, "UnWrapKey", make([]byte, size)); st.Code() != want {
			t.Errorf("a request of %d bytes: %v", size, st)
		}
	}
	if got, st := ask(t.Context(), t, conn, "GetResource", "kbs:///fits/key/1"); len(got.Bytes()) != maxReply {
		t.Error(st)
	}
	_, st := ask(t.Context(), t, conn, "GetResource", "kbs:///big/key/1")
	wantFault(t, st, textResource+": the content is larger than 4 MiB")
}

func TestGRPCConcurrentCallsWithOneFailing(t *testing.T) {
	w := newWorld(t)
	conn := w.grpc(t)
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			want, at := codes.OK, uri
			if i == 7 {
				want, at = codes.Internal, "kbs:///denied/key/1"
			}
			if _, st := ask(context.Background(), t, conn, "GetResource", at); st.Code() != want {
				t.Errorf("call %d: %v", i, st)
			}
		})
	}
	all.Wait()
	if n := w.aa.Tokens.Load(); n != 1 {
		t.Errorf("%d tokens", n)
	}
}

// A caller who gives up ends what was done for it.
func TestGRPCCallerWhoGivesUp(t *testing.T) {
	w := newWorld(t)
	entered := make(chan struct{})
	w.aa.Lock(func() {
		w.aa.GetTokenFunc = func(ctx context.Context) ([]byte, error) {
			close(entered)
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	conn := w.grpc(t)
	ctx, giveUp := context.WithCancel(t.Context())
	got := make(chan *status.Status, 1)
	go func() {
		_, st := ask(ctx, t, conn, "GetResource", uri)
		got <- st
	}()
	<-entered
	giveUp()
	if st := <-got; st.Code() != codes.Canceled {
		t.Error(st)
	}
}

// Both servers offer what the .proto files have, and nothing else.
func TestGRPCHasEveryMethod(t *testing.T) {
	srv := grpc.NewServer()
	newWorld(t).hub.RegisterGRPC(srv)
	have, want := map[string]bool{}, map[string]bool{}
	for service, info := range srv.GetServiceInfo() {
		for _, m := range info.Methods {
			have[service+"/"+m.Name] = true
		}
	}
	for _, f := range []protoreflect.FileDescriptor{datahub.File_datahub_data_hub_proto, keyprovider.File_keyprovider_key_provider_proto} {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				want[fmt.Sprintf("%s/%s", s.FullName(), s.Methods().Get(j).Name())] = true
			}
		}
	}
	if len(want) != len(wires) || fmt.Sprint(have) != fmt.Sprint(want) {
		t.Errorf("have %v\nwant %v", have, want)
	}
	conn := newWorld(t).grpc(t)
	for _, other := range []string{"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.health.v1.Health/Check", "/api.GetResourceService/Other"} {
		in, out := wires["GetResource"].messages(t)
		if err := conn.Invoke(t.Context(), other, in, out); status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", other, err)
		}
	}
}

func TestGRPCAddressForTtrpcIsHintedAt(t *testing.T) {
	c := defaults()
	c.KBC.Name, c.Socket = "offline_fs_kbc", GRPCAddr
	if err := c.validate(); !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), "set listen in [grpc]") {
		t.Error(err)
	}
}

func TestGRPCAddresses(t *testing.T) {
	for _, tt := range []struct {
		listen string
		any    bool
		ok     bool
	}{
		{"", false, true}, {GRPCAddr, false, true}, {"[::1]:50000", false, true}, {"127.0.0.1:0", true, true},
		{"0.0.0.0:50000", false, false}, {"10.0.0.1:50000", false, false}, {"localhost:50000", false, false}, {"unix:///x", false, false},
		{"0.0.0.0:50000", true, true}, {"10.0.0.1:50000", true, true}, {"localhost:50000", true, false}, {":50000", true, false},
	} {
		c := defaults()
		c.KBC.Name = "offline_fs_kbc"
		c.GRPC = GRPC{Listen: tt.listen, AnyAddress: tt.any}
		if err := c.validate(); (err == nil) != tt.ok || err != nil && !errors.Is(err, ErrConfig) {
			t.Errorf("%q, any %v: %v", tt.listen, tt.any, err)
		}
	}
}

// The socket, which says "ready", comes after the port; the daemon's end takes
// both away. A port that is taken is a start that fails, without a socket.
func TestRunServesBoth(t *testing.T) {
	taken, err := listenGRPC(t.Context(), GRPC{Listen: "127.0.0.1:0"}, cdhtest.Quiet)
	if err != nil {
		t.Fatal(err)
	}
	addr := taken.Addr().String()
	c := defaults()
	c.KBC.Name = "offline_fs_kbc"
	path := filepath.Join(t.TempDir(), "cdh.sock")
	c.Socket, c.GRPC.Listen = "unix://"+path, addr
	host := machine(t, nil, map[string]string{"/etc/aa-offline_fs_kbc-resources.json": `{"default/key/1":"c2VjcmV0"}`})
	if err := Run(t.Context(), c, host, cdhtest.Quiet); err == nil || !strings.Contains(err.Error(), "listening on "+addr) {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 0 {
		t.Errorf("%v says ready", left)
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	done := make(chan error, 1)
	go func() { done <- Run(ctx, c, host, cdhtest.Quiet) }()
	conn := dialGRPC(t, addr)
	var got protoreflect.Value
	for st := status.New(codes.Unavailable, ""); st.Code() == codes.Unavailable && ctx.Err() == nil; {
		got, st = ask(ctx, t, conn, "GetResource", uri)
	}
	if string(got.Bytes()) != "secret" {
		t.Errorf("got %q", got)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 0 {
		t.Errorf("%v is left", left)
	}
}

func TestWriteNothing(t *testing.T) {
	host := machine(t, nil, nil)
	c := defaults()
	c.KBC.Name, c.WriteNothing = "offline_fs_kbc", true
	c.Credentials = []Credential{{"/run/confidential-containers/cdh/kbs/x", uri}}
	h, err := Open(t.Context(), c, host, cdhtest.Quiet)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(filepath.Join(host.Root, "run", "*")); len(left) != 0 {
		t.Errorf("%v was written", left)
	}
}
