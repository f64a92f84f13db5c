package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/ttrpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"
)

// Answers returns nil if a ttrpc server answers at the unix socket at path
// before ctx ends. It asks for a method that nobody has: that takes the whole
// way of a call but for a slot, so a server with as many calls as it may have
// answers too.
func Answers(ctx context.Context, path string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return err
	}
	c := ttrpc.NewClient(conn)
	err = c.Call(ctx, "sealpod.Nobody", "There", &emptypb.Empty{}, &emptypb.Empty{})
	if closed := c.Close(); closed != nil {
		return closed
	}
	if status.Code(err) != codes.Unimplemented {
		return fmt.Errorf("asking the server at %s: %w", path, errors.Join(err, ctx.Err()))
	}
	return nil
}

// clientHello is what an HTTP/2 client begins with: the preface, and settings
// without any. Source: RFC 9113, §3.4 and §4.1.
const clientHello = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + "\x00\x00\x00\x04\x00\x00\x00\x00\x00"

// AnswersGRPC is Answers for a gRPC server at the TCP address addr: nil if it
// greets, which it does not while it has as many connections as it may have.
func AnswersGRPC(ctx context.Context, addr string) (err error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, clientHello); err != nil {
		return err
	}
	var frame [9]byte
	if _, err := io.ReadFull(conn, frame[:]); err != nil {
		return fmt.Errorf("asking the server at %s: %w", addr, err)
	}
	if frame[3] != 4 {
		return fmt.Errorf("asking the server at %s: frame type %d is not settings", addr, frame[3])
	}
	return nil
}
