package control

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"skep/pki"
)

const (
	// shakeTime is how long a handshake may take, and a hello after it.
	shakeTime = 5 * time.Second
	// idleTime is after what time a connection without requests ends.
	idleTime = 3 * time.Minute
	// reviewPause is between two reviews: news may come much faster.
	reviewPause = 100 * time.Millisecond
	// reviewPeriod is between reviews that nobody asks for: the judge may go by
	// the time, and the node's own identity changes too.
	reviewPeriod = 10 * time.Second
	// acceptPause is after an error of Accept that may pass: too many files.
	acceptPause = 100 * time.Millisecond
)

// Config is what a port needs.
type Config struct {
	// Identity is the node's present identity.
	Identity func() *Identity
	Judge    Judge
	Routes   []Route
	// Dialer reaches the other members of Raft; needed by Layer only.
	Dialer *Dialer
	Logger *slog.Logger
}

// Port is a manager's control port.
type Port struct {
	cfg    Config
	muxes  map[Class]*http.ServeMux
	table  []Row
	links  *links
	review chan struct{}

	mu    sync.Mutex
	layer *layer // the last that was made
}

// New makes a port; Serve opens it.
func New(cfg Config) (*Port, error) {
	muxes, table, err := route(cfg.Routes)
	if err != nil {
		return nil, fmt.Errorf("make control port: %w", err)
	}
	return &Port{cfg: cfg, muxes: muxes, table: table, links: newLinks(), review: make(chan struct{}, 1)}, nil
}

// Table lists all routes.
func (p *Port) Table() []Row { return p.table }

// Review judges all open connections again, soon and in the background, and
// ends those whose standing is not what it was. It is cheap: for all news of
// nodes.
func (p *Port) Review() {
	select {
	case p.review <- struct{}{}:
	default:
	}
}

// Serve answers on ln until ctx ends, and then ends all connections. It is
// called once.
func (p *Port) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	defer all.Wait()
	defer p.links.closeAll()
	defer cancel()

	queues := map[Class]*queue{}
	for _, c := range []Class{Anonymous, Worker, Manager} {
		q := &queue{conns: make(chan net.Conn), done: ctx.Done(), addr: ln.Addr()}
		queues[c] = q
		all.Go(func() { p.serveClass(ctx, c, q) })
	}
	all.Go(func() { p.reviews(ctx) })
	all.Go(func() {
		<-ctx.Done()
		_ = ln.Close()
	})
	for {
		conn, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on control port: %w", err)
		case err != nil:
			p.cfg.Logger.WarnContext(ctx, "accepting on the control port failed", "err", err)
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		}
		l := p.links.add(conn, source(conn.RemoteAddr()))
		if l == nil {
			_ = conn.Close()
			continue
		}
		all.Go(func() {
			if err := p.welcome(ctx, l, queues); err != nil {
				_ = l.Close()
				p.cfg.Logger.DebugContext(ctx, "refused a connection", "remote", conn.RemoteAddr().String(), "err", err)
			}
		})
	}
}

// welcome brings a connection through its handshake to its server.
func (p *Port) welcome(ctx context.Context, l *link, queues map[Class]*queue) error {
	sctx, cancel := context.WithTimeout(ctx, shakeTime)
	defer cancel()
	node := pki.Node{}
	conn := tls.Server(l, p.serverTLS(&node))
	if err := conn.HandshakeContext(sctx); err != nil {
		return fmt.Errorf("shake hands: %w", err)
	}
	cs := conn.ConnectionState()
	life, raft := anonymousLife, cs.NegotiatedProtocol == protoRaft
	if node.ID != "" {
		life = time.Until(cs.PeerCertificates[0].NotAfter)
	}
	if !p.links.admit(l, node, cs.PeerCertificates, raft, life) {
		return errors.New("too many connections without a certificate")
	}
	class := p.classify(l)
	if raft {
		return p.welcomeRaft(ctx, l, conn)
	}
	if class == Nobody || class == Expelled {
		class = Anonymous // where the gate tells it so
	}
	select {
	case queues[class].conns <- conn:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// serverTLS is for one connection; node becomes the peer's.
func (p *Port) serverTLS(node *pki.Node) *tls.Config {
	id := p.cfg.Identity()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protoRaft, protoH2},
		SessionTicketsDisabled: true,
		// Whether a certificate is asked for is Go's part, what it is worth
		// is VerifyConnection's: all of it.
		ClientAuth:   tls.RequestClientCert,
		Certificates: []tls.Certificate{*id.serving()},
		VerifyConnection: func(cs tls.ConnectionState) (err error) {
			raft := cs.NegotiatedProtocol == protoRaft
			if !raft && cs.NegotiatedProtocol != protoH2 {
				return errors.New("no protocol was agreed on")
			}
			if len(cs.PeerCertificates) == 0 {
				if raft {
					return errors.New("raft without a certificate")
				}
				return nil
			}
			if *node, err = id.verify(cs.PeerCertificates); err != nil {
				return err
			}
			if raft && p.cfg.Judge(*node, true) != Manager {
				return fmt.Errorf("node %s may not speak raft", node.ID)
			}
			return nil
		},
	}
}

// judge is what a connection's peer is now.
func (p *Port) judge(l *link) Class {
	if l.node.ID == "" {
		return Anonymous
	}
	return p.cfg.Judge(l.node, l.raft)
}

// classify judges a connection for the first time. Since it judges once more
// after that is known, no review can miss it.
func (p *Port) classify(l *link) Class {
	class := p.judge(l)
	l.class.Store(class)
	if p.judge(l) != class {
		return Nobody
	}
	return class
}

func (p *Port) reviews(ctx context.Context) {
	trusted := p.cfg.Identity()
	period := time.NewTicker(reviewPeriod)
	defer period.Stop()
	for {
		select {
		case <-p.review:
		case <-period.C:
		case <-ctx.Done():
			return
		}
		id := p.cfg.Identity()
		again := id.Cluster != trusted.Cluster || id.Epoch != trusted.Epoch
		verify := !id.trustsAll(trusted.Roots)
		for _, l := range p.links.judged() {
			lost := again || p.judge(l) != l.Class()
			if !lost && verify {
				_, err := id.verify(l.chain)
				lost = err != nil
			}
			if lost {
				p.cfg.Logger.InfoContext(ctx, "cut off a connection", "node", l.node.ID, "remote", l.RemoteAddr().String())
				_ = l.Close()
			}
		}
		trusted = id
		select {
		case <-time.After(reviewPause):
		case <-ctx.Done():
			return
		}
	}
}

// serveClass is the server of one class.
func (p *Port) serveClass(ctx context.Context, c Class, q *queue) {
	h2 := &http.HTTP2Config{
		MaxConcurrentStreams:          64,
		MaxReadFrameSize:              16 << 10,
		MaxReceiveBufferPerStream:     256 << 10,
		MaxReceiveBufferPerConnection: 4<<20 - 1,
		WriteByteTimeout:              sendTime,
	}
	s := &http.Server{
		Handler:           p.gate(c, p.muxes[c]),
		ReadHeaderTimeout: shakeTime,
		IdleTimeout:       idleTime,
		MaxHeaderBytes:    16 << 10,
		HTTP2:             h2,
		Protocols:         new(http.Protocols),
		ErrorLog:          slog.NewLogLogger(p.cfg.Logger.Handler(), slog.LevelWarn),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, conn net.Conn) context.Context {
			return context.WithValue(ctx, linkKey{}, linkOf(conn))
		},
	}
	s.Protocols.SetHTTP2(true)
	switch c {
	case Anonymous:
		h2.MaxConcurrentStreams, h2.MaxReceiveBufferPerStream, h2.MaxReceiveBufferPerConnection = 4, 64<<10, 64<<10
		s.ReadTimeout, s.IdleTimeout = sendTime, 2*sendTime
	case Manager:
		h2.MaxConcurrentStreams, h2.MaxReceiveBufferPerStream = 1024, 1<<20
	default:
	}
	defer s.Close()
	// It returns when the queue ends.
	_ = s.Serve(q)
}

// queue is a listener whose connections come from elsewhere.
type queue struct {
	conns chan net.Conn
	done  <-chan struct{}
	addr  net.Addr
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error   { return nil }
func (q *queue) Addr() net.Addr { return q.addr }
