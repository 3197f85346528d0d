package storetest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Network joins endpoints by connections that behave as TCP's do: bytes take
// their time, keep their order, and wait at a cut until it is healed, so that
// who waits for them only has its own deadlines. Endpoints are named by their
// host, or host:service.
type Network struct {
	mu      sync.Mutex
	cut     map[[2]string]bool // from, to
	latency time.Duration      // the most that a chunk is under way
	changed chan struct{}      // closed when a cut is healed
	ends    map[string]*Endpoint
	links   map[*link]struct{}
}

// link is one connection.
type link struct {
	from, to *Endpoint
	ends     [4]net.Conn
	dead     chan struct{} // closed when it was reset
	reset    sync.Once
}

// NewNetwork is a network where all reach all.
func NewNetwork() *Network {
	return &Network{
		cut: map[[2]string]bool{}, latency: 2 * time.Millisecond, changed: make(chan struct{}),
		ends: map[string]*Endpoint{}, links: map[*link]struct{}{},
	}
}

// Endpoint is where a process listens and dials from. It is a raft.StreamLayer.
type Endpoint struct {
	net  *Network
	name string
	// epoch must be equal on both sides of a connection, as the hello frame of
	// the control port has it.
	epoch  uint64
	accept chan net.Conn
	dead   chan struct{} // closed by Close
	once   sync.Once
}

func host(name string) string {
	h, _, _ := strings.Cut(name, ":")
	return h
}

// Listen makes an endpoint, in place of an older one of that name.
func (n *Network) Listen(name string, epoch uint64) *Endpoint {
	e := &Endpoint{net: n, name: name, epoch: epoch, accept: make(chan net.Conn), dead: make(chan struct{})}
	n.mu.Lock()
	old := n.ends[name]
	n.ends[name] = e
	n.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
	return e
}

// Cut cuts what goes from one host to another, or heals that.
func (n *Network) Cut(from, to string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if cut {
		n.cut[[2]string{from, to}] = true
		return
	}
	delete(n.cut, [2]string{from, to})
	close(n.changed)
	n.changed = make(chan struct{})
}

// Heal undoes all cuts and slowness.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	n.latency = 2 * time.Millisecond
	close(n.changed)
	n.changed = make(chan struct{})
}

// Slow sets the most that anything is under way.
func (n *Network) Slow(latency time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.latency = latency
}

// Reaches reports whether both directions between two hosts are open.
func (n *Network) Reaches(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[[2]string{a, b}] && !n.cut[[2]string{b, a}]
}

// Pass waits until something from one host is at another, and is false if
// over closes first.
func (n *Network) Pass(from, to string, over ...<-chan struct{}) bool {
	over = append(over, nil, nil, nil)
	n.mu.Lock()
	t := time.NewTimer(n.latency/4 + rand.N(max(n.latency, time.Millisecond)))
	n.mu.Unlock()
	defer t.Stop()
	select {
	case <-t.C:
	case <-over[0]:
		return false
	case <-over[1]:
		return false
	}
	for {
		n.mu.Lock()
		cut, changed := n.cut[[2]string{from, to}], n.changed
		n.mu.Unlock()
		if !cut {
			return true
		}
		select {
		case <-changed:
		case <-over[0]:
			return false
		case <-over[1]:
			return false
		}
	}
}

// Dial implements raft.StreamLayer.
func (e *Endpoint) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	n, to := e.net, host(string(address))
	late := make(chan struct{})
	t := time.AfterFunc(timeout, func() { close(late) })
	defer t.Stop()
	for _, way := range [][2]string{{host(e.name), to}, {to, host(e.name)}} {
		if !n.Pass(way[0], way[1], late, e.dead) {
			return nil, fmt.Errorf("dial %s: %w", address, os.ErrDeadlineExceeded)
		}
	}
	n.mu.Lock()
	other := n.ends[string(address)]
	n.mu.Unlock()
	if other == nil {
		return nil, fmt.Errorf("dial %s: connection refused", address)
	}
	if e.epoch != other.epoch {
		return nil, fmt.Errorf("dial %s: it is of epoch %d, this is %d", address, other.epoch, e.epoch)
	}
	l := &link{from: e, to: other, dead: make(chan struct{})}
	l.ends[0], l.ends[1] = net.Pipe()
	l.ends[2], l.ends[3] = net.Pipe()
	n.mu.Lock()
	n.links[l] = struct{}{}
	n.mu.Unlock()
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(l.ends[2], l.ends[1], host(e.name), to) })
	pumps.Go(func() { l.pump(l.ends[1], l.ends[2], to, host(e.name)) })
	go func() { // ends with the pumps, which end with the connection
		pumps.Wait()
		l.cut()
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.links, l)
	}()
	select {
	case other.accept <- &accepted{l.ends[3], addr(e.name)}:
		return l.ends[0], nil
	case <-other.dead:
	case <-e.dead:
	case <-late:
	}
	l.cut()
	return nil, fmt.Errorf("dial %s: connection refused", address)
}

// cut is a reset on both sides.
func (l *link) cut() {
	l.reset.Do(func() {
		close(l.dead)
		for _, c := range l.ends {
			_ = c.Close()
		}
	})
}

// pump carries one direction. The end of the connection travels as bytes do.
func (l *link) pump(dst, src net.Conn, from, to string) {
	buf := make([]byte, 16<<10)
	for {
		k, rerr := src.Read(buf)
		if !l.from.net.Pass(from, to, l.dead) || rerr != nil {
			break
		}
		if _, err := dst.Write(buf[:k]); err != nil {
			l.from.net.Pass(to, from, l.dead)
			break
		}
	}
	_, _ = dst.Close(), src.Close()
}

// Accept implements net.Listener.
func (e *Endpoint) Accept() (net.Conn, error) {
	select {
	case c := <-e.accept:
		return c, nil
	case <-e.dead:
		return nil, net.ErrClosed
	}
}

// Close ends the endpoint and all its connections.
func (e *Endpoint) Close() error {
	e.once.Do(func() {
		close(e.dead)
		e.net.mu.Lock()
		var links []*link
		for l := range e.net.links {
			if l.from == e || l.to == e {
				links = append(links, l)
			}
		}
		if e.net.ends[e.name] == e {
			delete(e.net.ends, e.name)
		}
		e.net.mu.Unlock()
		for _, l := range links {
			l.cut()
		}
	})
	return nil
}

// Addr implements net.Listener.
func (e *Endpoint) Addr() net.Addr { return addr(e.name) }

// accepted is a connection that knows who made it.
type accepted struct {
	net.Conn
	from addr
}

func (a *accepted) RemoteAddr() net.Addr { return a.from }

type addr string

func (addr) Network() string  { return "bubble" }
func (a addr) String() string { return string(a) }
