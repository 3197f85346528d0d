package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// Endpoint is an address to serve the API on.
type Endpoint struct {
	Network string // unix, vsock or tcp
	// Address is a path, a port or host:port.
	Address string
}

func (e Endpoint) String() string { return e.Network + "://" + e.Address }

// ListenConfig is what listeners need to know.
type ListenConfig struct {
	Endpoints []Endpoint
	// Groups maps Unix groups to the roles of their members on unix sockets.
	Groups map[uint32]Role
	// TLS is required for tcp; see [ServerTLS].
	TLS *tls.Config
}

// Listen opens all endpoints, or none. Closing a listener frees its address.
func Listen(ctx context.Context, c ListenConfig) ([]net.Listener, error) {
	var ls []net.Listener
	for _, e := range c.Endpoints {
		l, err := listen(ctx, e, c)
		if err != nil {
			for _, l := range ls {
				_ = l.Close()
			}
			return nil, fmt.Errorf("listen on %s: %w", e, err)
		}
		ls = append(ls, l)
	}
	return ls, nil
}

func listen(ctx context.Context, e Endpoint, c ListenConfig) (net.Listener, error) {
	switch e.Network {
	case "unix":
		return listenUnix(ctx, e.Address, c.Groups)
	case "vsock":
		return listenVsock(e.Address)
	case "tcp":
		if c.TLS == nil {
			return nil, errors.New("tcp is served under mutual TLS only")
		}
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", e.Address)
		if err != nil {
			return nil, err
		}
		return tls.NewListener(l, c.TLS), nil
	}
	return nil, fmt.Errorf("unknown network %q", e.Network)
}

// vouched is a connection whose peer the kernel has vouched for.
type vouched struct {
	net.Conn
	peer Principal
}

// CloseWrite ends this side's half of the connection.
func (v vouched) CloseWrite() error {
	if c, ok := v.Conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return errors.ErrUnsupported
}

// vsockListener accepts connections of the hypervisor only.
type vsockListener struct{ net.Listener }

func listenVsock(port string) (net.Listener, error) {
	n, err := strconv.ParseUint(port, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("port %q: %w", port, err)
	}
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, uint32(n), nil)
	if err != nil {
		return nil, err
	}
	return vsockListener{l}, nil
}

func (l vsockListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if peer, ok := vsockPeer(c.RemoteAddr()); ok {
			return vouched{c, peer}, nil
		}
		_ = c.Close()
	}
}

// vsockPeer is who is at the other end of a vsock connection. Only the
// hypervisor is let in; this guest itself, its siblings and nested guests are
// not. A port below 1024 there takes root, as it does here.
func vsockPeer(addr net.Addr) (Principal, bool) {
	a, ok := addr.(*vsock.Addr)
	if !ok || a.ContextID != vsock.Host {
		return Principal{}, false
	}
	p := Principal{Name: "hypervisor", Transport: "vsock", Detail: a.String(), Role: Viewer}
	if a.Port < 1024 {
		p.Role = Admin
	}
	return p, true
}
