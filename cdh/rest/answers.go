package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

// Answers returns nil if an HTTP server answers at addr before ctx ends. The
// request is a bad one on purpose: the server refuses it before the handler, so
// it takes none of the slots of those who want something.
func Answers(ctx context.Context, addr net.Addr) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, addr.Network(), addr.String())
	if err != nil {
		return err
	}
	return answers(ctx, conn)
}

// answers asks at conn, and closes it.
func answers(ctx context.Context, conn net.Conn) (err error) {
	defer func() { err = errors.Join(err, conn.Close()) }()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil { // no host
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return fmt.Errorf("asking the server at %s: %w", conn.RemoteAddr(), err)
	}
	return resp.Body.Close()
}
