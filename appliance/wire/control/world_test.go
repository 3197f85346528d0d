package control_test

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/appliance/wire/control/controltest"
	"skep/pki"
)

// book is a judge that goes by what the test writes into it.
type book struct {
	mu    sync.Mutex
	nodes map[string]entry
}

type entry struct {
	role string
	min  uint64
}

func newBook() *book { return &book{nodes: map[string]entry{}} }

func (b *book) set(id, role string, least uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.nodes[id] = entry{role, least}
}

func (b *book) remove(id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.nodes, id)
}

func (b *book) judge(n pki.Node, _ bool) control.Class {
	b.mu.Lock()
	defer b.mu.Unlock()
	e, ok := b.nodes[n.ID]
	switch {
	case !ok || n.Generation < e.min:
		return control.Nobody
	case n.Role == pki.Manager && e.role == pki.Manager:
		return control.Manager
	default:
		return control.Worker
	}
}

// world is a manager with an open port, and what is needed to call it.
type world struct {
	*controltest.Swarm
	book *book
	port *control.Port
	peer wire.Peer
	self *control.Identity
	stop func()

	present atomic.Pointer[control.Identity]
}

// setSelf gives the manager another identity.
func (w *world) setSelf(id *control.Identity) { w.present.Store(id) }

func logger(tb testing.TB) *slog.Logger {
	tb.Helper()
	return slog.New(slog.NewTextHandler(tb.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func newWorld(tb testing.TB, routes ...control.Route) *world {
	tb.Helper()
	w := &world{Swarm: controltest.NewSwarm(tb, "swarm"), book: newBook()}
	w.Epoch = 1
	w.self = w.Manager(tb, "m1", 1)
	w.book.set("m1", pki.Manager, 0)
	w.setSelf(w.self)
	w.port, w.peer, w.stop = w.open(tb, w.present.Load, nil, routes...)
	return w
}

// open serves a port until the test ends.
func (w *world) open(tb testing.TB, id func() *control.Identity, d *control.Dialer, routes ...control.Route) (*control.Port, wire.Peer, func()) {
	tb.Helper()
	p, err := control.New(control.Config{Identity: id, Judge: w.book.judge, Routes: routes, Dialer: d, Logger: logger(tb)})
	if err != nil {
		tb.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx, ln) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Errorf("Serve: %v", err)
		}
	})
	tb.Cleanup(stop)
	return p, wire.Peer{NodeID: id().NodeID, Addr: ln.Addr().String()}, stop
}

// dialer is that of a node.
func dialer(tb testing.TB, id *control.Identity) *control.Dialer {
	tb.Helper()
	d := control.NewDialer(control.DialerConfig{Identity: func() *control.Identity { return id }, Logger: logger(tb)})
	tb.Cleanup(d.Close)
	return d
}

func within(tb testing.TB, d time.Duration) context.Context {
	tb.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	tb.Cleanup(cancel)
	return ctx
}

type ask struct{ Text string }

type reply struct{ Text string }

// echo answers with who asked and what.
func echo(_ context.Context, from pki.Node, q *ask) (*reply, error) {
	return &reply{from.ID + ":" + q.Text}, nil
}

func members() []control.Class { return []control.Class{control.Worker, control.Manager} }
