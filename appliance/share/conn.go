package share

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// ServeConn serves requests that come over one connection until it ends or ctx
// does, and closes it. A handler that takes the connection over has it until it
// closes it, or ctx ends.
func ServeConn(ctx context.Context, conn net.Conn, h http.Handler, logger *slog.Logger) error {
	l := &single{conn: make(chan net.Conn, 1), closed: make(chan struct{}), addr: conn.LocalAddr()}
	conn = &tied{Conn: conn, listener: l}
	l.conn <- conn
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	stop := context.AfterFunc(ctx, func() { _ = errors.Join(server.Close(), conn.Close()) })
	defer stop()
	err := server.Serve(l)
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// tied is the connection of a listener that ends with it.
type tied struct {
	net.Conn
	listener *single
}

func (t *tied) Close() error { return errors.Join(t.Conn.Close(), t.listener.Close()) }

// CloseWrite ends the output, and if that cannot be done alone, all.
func (t *tied) CloseWrite() error {
	if half, ok := t.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return t.Close()
}

// single is a listener with one connection. It ends with it.
type single struct {
	conn   chan net.Conn
	once   sync.Once
	closed chan struct{}
	addr   net.Addr
}

func (l *single) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *single) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *single) Addr() net.Addr { return l.addr }
