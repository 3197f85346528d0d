package gossip_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"skep/net/gossip"
)

const patience = 20 * time.Second

// world is a swarm of gossiping nodes on addresses of the loopback.
type world struct {
	testing.TB
	port  uint16
	state gossip.State // for all but the node's own name
	nodes []*node
}

type node struct {
	*gossip.Gossip
	name string
	addr netip.Addr
	stop func()

	mu     sync.Mutex
	events []string // guarded by mu
	dead   map[string]bool
	log    bytes.Buffer // guarded by mu
}

// changed is what gossip calls.
func (n *node) changed(who string, alive bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dead[who] = !alive
	n.events = append(n.events, fmt.Sprint(who, " ", alive))
}

func (n *node) Write(b []byte) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.log.Write(b)
}

func (n *node) logged(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Contains(n.log.String(), text)
}

func (n *node) believes(who string) (dead bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead[who]
}

func (n *node) heard() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.events...)
}

func key() []byte {
	k := make([]byte, 32)
	_, _ = rand.Read(k)
	return k
}

func newWorld(tb testing.TB, count int) *world {
	tb.Helper()
	l, err := net.Listen("tcp", "127.77.1.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	w := &world{TB: tb, port: netip.MustParseAddrPort(l.Addr().String()).Port()}
	w.state = gossip.State{Cluster: "c", Version: 1, Keys: [][]byte{key()}}
	for i := range count {
		n := &node{name: fmt.Sprintf("n%d", i+1), addr: netip.AddrFrom4([4]byte{127, 77, 0, byte(i + 1)}), dead: map[string]bool{}}
		w.nodes = append(w.nodes, n)
		w.state.Peers = append(w.state.Peers, gossip.Peer{NodeID: n.name, Addr: n.addr})
	}
	tb.Cleanup(func() {
		var stopping sync.WaitGroup
		for _, n := range w.nodes {
			if n.stop != nil {
				stopping.Go(n.stop)
			}
		}
		stopping.Wait()
	})
	return w
}

// start starts a node with what all know.
func (w *world) start(n *node) {
	w.Helper()
	w.launch(n)
	w.tell(n)
}

func (w *world) launch(n *node) {
	w.Helper()
	n.Gossip = gossip.New(gossip.Config{
		Port: w.port, Version: "v1", Changed: n.changed,
		Logger: slog.New(slog.NewTextHandler(n, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- n.Run(ctx) }() // waited for by stop
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			w.Errorf("Run of %s: got %v", n.name, err)
		}
	})
}

func (w *world) tell(nodes ...*node) {
	for _, n := range nodes {
		s := w.state
		s.NodeID = n.name
		n.Set(s)
	}
}

func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("not %s after %v", what, patience)
		}
	}
}

// see says whether each of these nodes takes as many members for alive.
func (w *world) see(nodes ...*node) func() bool {
	return func() bool {
		for _, n := range nodes {
			if len(n.Alive()) != len(nodes) {
				return false
			}
		}
		return true
	}
}

func TestGossip_OfTwenty(t *testing.T) {
	w := newWorld(t, 20)
	began := time.Now()
	for _, n := range w.nodes {
		w.start(n)
	}
	w.until("converged", w.see(w.nodes...))
	t.Logf("converged after %v", time.Since(began))

	// The keys change under it, not everywhere at once.
	old, next := w.state.Keys[0], key()
	for _, ring := range [][][]byte{{old, next}, {next, old}, {next}} {
		w.state.Version++
		w.state.Keys = ring
		for i, n := range w.nodes {
			w.tell(n)
			if i%4 == 0 {
				time.Sleep(100 * time.Millisecond)
			}
		}
		time.Sleep(time.Second)
	}
	for _, n := range w.nodes {
		if e := n.heard(); len(e) > 0 {
			t.Errorf("%s was told while the keys changed: %q", n.name, e)
		}
	}
	w.until("together with the new key", w.see(w.nodes...))

	// A crash.
	crashed, rest := w.nodes[7], append(append([]*node(nil), w.nodes[:7]...), w.nodes[8:]...)
	began = time.Now()
	crashed.stop()
	w.until("seen", func() bool {
		for _, n := range rest {
			if !n.believes(crashed.name) {
				return false
			}
		}
		return true
	})
	t.Logf("crash known to all after %v", time.Since(began))
	if took := time.Since(began); took > 6*time.Second {
		t.Errorf("a crash is known to all after %v", took)
	}
	for _, n := range rest {
		if e := n.heard(); len(e) != 1 {
			t.Errorf("%s was told %q", n.name, e)
		}
	}
	w.start(crashed)
	w.until("back", func() bool {
		for _, n := range rest {
			if n.believes(crashed.name) {
				return false
			}
		}
		return true
	})
}

func TestGossip_ListensOnlyWithKeysAndItsOwnAddress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	n := w.nodes[0]
	open := func() bool {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(n.addr, w.port).String(), time.Second)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}
	full := w.state
	w.state.Keys = nil
	w.start(n)
	time.Sleep(200 * time.Millisecond)
	if open() {
		t.Error("it listens without keys")
	}
	w.state = full
	w.tell(n)
	w.until("listening", open)
	w.start(w.nodes[1])
	w.until("together", w.see(w.nodes...))
	n.Set(gossip.State{})
	w.until("closed", func() bool { return !open() })

	// What was believed is taken back with it.
	w.tell(n)
	w.until("together again", w.see(w.nodes...))
	w.nodes[1].stop()
	w.until("dead", func() bool { return n.believes("n2") })
	n.Set(gossip.State{})
	w.until("forgotten", func() bool { return !n.believes("n2") })
}

func TestGossip_DoesWithoutAPortThatIsTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 2)
	l, err := net.Listen("tcp", netip.AddrPortFrom(w.nodes[0].addr, w.port).String())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.start(w.nodes[0])
	w.start(w.nodes[1])
	w.until("in the log", func() bool { return w.nodes[0].logged("node does without gossip") })
	time.Sleep(time.Second)
	if e := w.nodes[1].heard(); len(e) > 0 {
		t.Errorf("a node that does not gossip is taken for dead: %q", e)
	}
}

func TestGossip_KeepsStrangersOut(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(s *gossip.State)
	}{
		{"another key", func(s *gossip.State) { s.Keys = [][]byte{key()} }},
		{"another swarm", func(s *gossip.State) { s.Cluster = "d" }},
		{"a name that is not listed", func(s *gossip.State) {
			s.NodeID = "x"
			s.Peers = append(append([]gossip.Peer(nil), s.Peers...), gossip.Peer{NodeID: "x", Addr: s.Peers[2].Addr})
		}},
		{"an address that is not listed", func(s *gossip.State) {
			peers := append([]gossip.Peer(nil), s.Peers...)
			peers[2].Addr = netip.MustParseAddr("127.77.0.99")
			s.Peers = peers
		}},
		{"another's name", func(s *gossip.State) {
			peers := append([]gossip.Peer(nil), s.Peers...)
			peers[1].Addr, peers[2].Addr = peers[2].Addr, peers[1].Addr
			s.NodeID, s.Peers = "n2", peers
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 3)
			w.start(w.nodes[0])
			w.start(w.nodes[1])
			w.until("together", w.see(w.nodes[:2]...))
			s := w.state
			s.NodeID = "n3"
			tt.spoil(&s)
			w.launch(w.nodes[2])
			w.nodes[2].Set(s)
			for end := time.Now().Add(2500 * time.Millisecond); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				for _, n := range w.nodes[:2] {
					if got := n.Alive(); !slices.Equal(got, []string{"n1", "n2"}) || len(n.heard()) > 0 {
						t.Fatalf("%s sees %q and was told %q", n.name, got, n.heard())
					}
				}
			}
		})
	}
}

func TestGossip_ARemovedNodeIsNotHeard(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	for _, n := range w.nodes {
		w.start(n)
	}
	w.until("together", w.see(w.nodes...))
	// It keeps its keys and its list; the others have it on theirs no more.
	w.state.Peers = w.state.Peers[:2]
	w.tell(w.nodes[:2]...)
	w.until("left alone", func() bool { return w.nodes[2].believes("n1") && w.nodes[2].believes("n2") })
	w.until("forgotten", w.see(w.nodes[:2]...))
	for _, n := range w.nodes[:2] {
		if e := n.heard(); len(e) > 0 {
			t.Errorf("%s was told %q", n.name, e)
		}
	}
}

func TestGossip_IsNotMovedByGarbage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.start(w.nodes[0])
	w.start(w.nodes[1])
	w.until("together", w.see(w.nodes[:2]...))
	// The third address is listed, so that what it sends is looked at.
	from := w.nodes[2].addr.AsSlice()
	to := netip.AddrPortFrom(w.nodes[0].addr, w.port)
	udp, err := net.DialUDP("udp", &net.UDPAddr{IP: from}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	label := append([]byte{244, 1}, 'c') // the swarm's, as it stands in front of a packet
	for i := range 3000 {
		b := make([]byte, i%1500)
		_, _ = rand.Read(b)
		if i%3 == 0 {
			b = append(append([]byte(nil), label...), b...)
		}
		_, _ = udp.Write(b) // a full queue drops some
		if i%100 == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for i := range 40 {
		d := net.Dialer{Timeout: time.Second, LocalAddr: &net.TCPAddr{IP: from}}
		c, err := d.DialContext(t.Context(), "tcp", to.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		b := append(append([]byte(nil), label...), make([]byte, i*100)...)
		_, _ = rand.Read(b[3:])
		_, _ = c.Write(b) // it may be refused
		if i%2 == 0 {
			_ = c.(*net.TCPConn).CloseWrite()
			_ = c.SetReadDeadline(time.Now().Add(3 * time.Second))
			_, _ = io.Copy(io.Discard, c)
		}
	}
	time.Sleep(3 * time.Second)
	for _, n := range w.nodes[:2] {
		if e := n.heard(); len(e) > 0 || len(n.Alive()) != 2 {
			t.Errorf("%s was told %q and sees %q", n.name, e, n.Alive())
		}
	}
}

func TestGossip_NoticesACopyOfANode(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 3)
	w.state.Peers = w.state.Peers[:2]
	for _, n := range w.nodes[:2] {
		w.start(n)
	}
	w.until("together", w.see(w.nodes[:2]...))
	copied := w.nodes[2]
	copied.name = "n2"
	// The manager lists whichever of the two has come last, and tells that one.
	list := func(n *node) {
		w.state.Peers = []gossip.Peer{w.state.Peers[0], {NodeID: "n2", Addr: n.addr}}
		w.tell(w.nodes[0])
	}
	list(copied)
	w.start(copied)
	w.until("the copy gossips", func() bool { return len(copied.Alive()) == 2 })
	if w.nodes[0].logged("two nodes have the same identity") {
		t.Error("a node that moved is taken for two")
	}
	list(w.nodes[1])
	w.tell(w.nodes[1])
	w.until("noticed", func() bool { return w.nodes[0].logged("two nodes have the same identity") })
}

func BenchmarkGossip_CrashKnownToAll(b *testing.B) {
	const size = 20
	w := newWorld(b, size)
	for _, n := range w.nodes {
		w.start(n)
	}
	w.until("converged", w.see(w.nodes...))
	var total time.Duration
	crashes, victim := 0, w.nodes[size-1]
	for b.Loop() {
		began := time.Now()
		victim.stop()
		w.until("seen", func() bool {
			for _, n := range w.nodes[:size-1] {
				if !n.believes(victim.name) {
					return false
				}
			}
			return true
		})
		total += time.Since(began)
		crashes++
		b.StopTimer()
		w.start(victim)
		w.until("together again", w.see(w.nodes...))
		b.StartTimer()
	}
	b.ReportMetric(total.Seconds()/float64(crashes), "s/crash")
}
