package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/ttrpc"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/sealpod/sealpod/cmd/internal/cli"
	"github.com/sealpod/sealpod/podvm"
	"github.com/sealpod/sealpod/podvm/rpc"
)

// maxMessage caps a file that becomes a request, in bytes: what ttrpc carries.
const maxMessage = 4 << 20

// rpcCall is one call, with the time it may take unless the user says otherwise.
type rpcCall struct {
	service, method string
	in, out         proto.Message
	timeout         time.Duration
	// text is what upstream's tools print of out.
	text func() (string, error)
}

// rpcConn is a connection to a daemon.
type rpcConn interface {
	call(ctx context.Context, c rpcCall) error
	Close() error
}

type ttrpcConn struct{ *ttrpc.Client }

func (c ttrpcConn) call(ctx context.Context, r rpcCall) error {
	return c.Call(ctx, r.service, r.method, r.in, r.out)
}

type grpcConn struct{ *grpc.ClientConn }

func (c grpcConn) call(ctx context.Context, r rpcCall) error {
	return c.Invoke(ctx, "/"+r.service+"/"+r.method, r.in, r.out)
}

// overGRPC tells whether the address is one for gRPC.
func (f *clientFlags) overGRPC() bool { return !strings.HasPrefix(f.address, "unix://") }

// do makes a call and prints what came back. The response is wiped by its owner.
func (f *clientFlags) do(cmd *cobra.Command, r rpcCall) error {
	within, err := f.within(r.timeout)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), within)
	defer cancel()
	conn, err := f.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close() //nolint:errcheck // the answer is here, or an error that says more
	if err := conn.call(ctx, r); err != nil {
		return f.failure(err, within)
	}
	text, err := r.text()
	if f.json {
		text, err = asJSON(r.out)
	}
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

// asJSON returns a message in protobuf's JSON form, without the blanks that
// package protojson puts there at random.
func asJSON(m proto.Message) (string, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("encoding the response: %w", err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, raw); err != nil {
		return "", fmt.Errorf("encoding the response: %w", err)
	}
	return b.String(), nil
}

// dial connects to the daemon. Keys cross the connection unencrypted, so gRPC
// goes to loopback addresses only, without a proxy.
func (f *clientFlags) dial(ctx context.Context) (rpcConn, error) {
	if !f.overGRPC() {
		path, err := rpc.SocketPath(f.address)
		if err != nil {
			return nil, fmt.Errorf("--socket: %w (%w)", err, cli.ErrUsage)
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, f.unreachable(err)
		}
		return ttrpcConn{ttrpc.NewClient(conn)}, nil
	}
	addr, err := rpc.LoopbackAddr(strings.TrimSuffix(strings.TrimPrefix(f.address, "http://"), "/"))
	if err != nil {
		return nil, fmt.Errorf("--socket %q: want unix://PATH, or http://HOST:PORT of a loopback address; to another machine make a tunnel, as with ssh -L (%w)",
			podvm.Printable(f.address, 200), cli.ErrUsage)
	}
	conn, err := grpc.NewClient("passthrough:"+addr.String(), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig())
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", addr, err)
	}
	return grpcConn{conn}, nil
}

// unreachable says who should be where nobody is.
func (f *clientFlags) unreachable(err error) error {
	hint := f.daemon.applet + " serves it in the pod VM: is it running?"
	switch {
	case f.overGRPC():
		hint = f.daemon.applet + " speaks gRPC when started with " + f.daemon.grpc
	case errors.Is(err, fs.ErrNotExist):
		hint = f.daemon.applet + " serves it in the pod VM, once it is ready"
	case errors.Is(err, fs.ErrPermission):
		hint = "its permissions keep you out: try as the user that runs " + f.daemon.applet
	case errors.Is(err, syscall.ECONNREFUSED):
		hint = "a socket without its " + f.daemon.applet + ", which may have been killed"
	}
	return fmt.Errorf("connecting to %s: %w\nhint: %s", podvm.Printable(f.address, 200), err, hint)
}

// failure says why a call did not work, in the daemon's own words where there
// are some.
func (f *clientFlags) failure(err error, within time.Duration) error {
	st := status.Convert(err)
	text := podvm.Printable(st.Message(), 4096)
	switch code := st.Code(); {
	case errors.Is(err, ttrpc.ErrClosed):
		return fmt.Errorf("%s closed the connection: was it killed, or is this not its socket?", f.daemon.applet)
	case code == codes.DeadlineExceeded, errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %s within %v\nhint: --timeout says how long to wait", f.daemon.applet, within)
	case f.overGRPC() && code == codes.Unavailable && text != "shutting down":
		return f.unreachable(errors.New(text))
	case code == codes.NotFound, code == codes.Unimplemented:
		return fmt.Errorf("%s (%v)\nhint: is this the socket of %s, and is that recent enough?", text, code, f.daemon.applet)
	default:
		return fmt.Errorf("%s (%v)", text, code)
	}
}
