// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"skep/net/link"
)

// server is one container's name server.
type server struct {
	resolver *Resolver
	id       string
	client   atomic.Pointer[Client]
	view     atomic.Pointer[seen]

	mu      sync.Mutex // held while sockets are opened, checked or closed
	gone    bool       // it was shut and must not be opened again
	sockets *sockets   // nil before the first
}

// seen is a view, and what it was made of.
type seen struct {
	state  *state
	client *Client
	view   view
}

// current is what the client sees now.
func (s *server) current() *view {
	st, c := s.resolver.state.Load(), s.client.Load()
	if v := s.view.Load(); v != nil && v.state == st && v.client == c {
		return &v.view
	}
	v := &seen{state: st, client: c, view: view{search: c.searches()}}
	for _, id := range c.Networks {
		if a, ok := st.networks[id]; ok {
			v.view.networks = append(v.view.networks, a.index())
		}
	}
	s.view.Store(v)
	return &v.view
}

// namespace tells namespaces apart.
type namespace struct{ device, inode uint64 }

func identify(path string) (namespace, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return namespace{}, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return namespace{st.Dev, st.Ino}, nil
}

// open makes the server serve the client. It reports false if it was shut.
func (s *server) open(ctx context.Context, c *Client) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false, nil
	}
	ns, err := identify(c.Namespace)
	if err != nil {
		return false, fmt.Errorf("open name server of %s: %w", c.ID, err)
	}
	s.client.Store(c.clone())
	if s.sockets != nil && s.sockets.namespace == ns {
		return true, nil
	}
	if s.sockets != nil {
		s.sockets.close()
		s.sockets = nil
	}
	opened, err := s.listen(ctx, c.Namespace)
	if err != nil {
		return false, fmt.Errorf("open name server of %s: %w", c.ID, err)
	}
	opened.namespace = ns
	s.sockets = opened
	s.resolver.serve(opened)
	return true, nil
}

// listen opens sockets in the namespace, at the port that it had before if
// that is free, and leads port 53 to it. On a kernel that cannot do that, it
// takes port 53 itself.
func (s *server) listen(ctx context.Context, path string) (*sockets, error) {
	kept := ports(s.resolver.cfg.RunDir)
	out := &sockets{server: s, connections: make(chan struct{}, maxConnections), asking: make(chan struct{}, maxAskingEach)}
	err := link.Within(path, func() error {
		if err := out.listen(ctx, kept.load(s.id)); err != nil {
			return err
		}
		if err := kept.save(s.id, out.port); err != nil {
			return err
		}
		var err error
		if out.generation, _, err = mend(out.port, 0); err == nil {
			return nil
		}
		s.resolver.cfg.Logger.WarnContext(ctx, "name server takes port 53 of its container", "container", s.id, "err", err)
		out.close()
		if direct := out.listenAt(ctx, portDNS); direct != nil {
			return errors.Join(err, direct)
		}
		return nil
	})
	if err != nil {
		out.close()
		return nil, err
	}
	return out, nil
}

// shut closes the sockets for good.
func (s *server) shut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone = true
	if s.sockets != nil {
		s.sockets.close()
	}
	ports(s.resolver.cfg.RunDir).remove(s.id)
}

// check mends the rules, and reports whether it had to.
func (s *server) check() (mended bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone || s.sockets == nil || s.sockets.port == portDNS {
		return false, nil
	}
	path := s.client.Load().Namespace
	ns, err := identify(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && ns != s.sockets.namespace {
		return false, nil // the container has ended, or another is about to be opened
	}
	if err == nil {
		err = link.Within(path, func() error {
			var generation uint32
			if generation, mended, err = mend(s.sockets.port, s.sockets.generation); err == nil {
				s.sockets.generation = generation
			}
			return err
		})
	}
	if err != nil {
		return mended, fmt.Errorf("check name server of %s: %w", s.id, err)
	}
	return mended, nil
}

// listen opens the sockets in this thread's namespace, at the port if it is
// free, else at any.
func (s *sockets) listen(ctx context.Context, port uint16) error {
	const tries = 16 // a port that is free for UDP may be taken for TCP
	var err error
	for range tries {
		if err = s.listenAt(ctx, port); err == nil {
			return nil
		}
		port = 0
	}
	return err
}

func (s *sockets) listenAt(ctx context.Context, port uint16) error {
	var lc net.ListenConfig
	packets, err := lc.ListenPacket(ctx, "udp4", fmt.Sprintf("%s:%d", Address, port))
	if err != nil {
		return err
	}
	udp := packets.(*net.UDPConn)
	widen(udp)
	port = udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()
	streams, err := lc.Listen(ctx, "tcp4", fmt.Sprintf("%s:%d", Address, port))
	if err != nil {
		return errors.Join(err, udp.Close())
	}
	s.udp, s.tcp, s.port = udp, streams.(*net.TCPListener), port
	return nil
}

// queue is the room for questions that have come and were not read: about a
// thousand. The kernel's own choice is for some two hundred.
const queue = 1 << 20

// widen makes room for a burst of questions. Without the right to, there is
// less of it.
func widen(conn *net.UDPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, queue) != nil {
			_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, queue)
		}
	})
}
