// Package gossip lets the nodes of a swarm find out by themselves which of them
// are alive, in a few seconds, by memberlist's packets on port 7946.
//
// What is to be is given by [Gossip.Set]: who the members are and where, and the
// keys. Without keys nothing is listened on. Only the listed addresses are heard
// and only listed names with their addresses are believed in; everything is
// encrypted and bound to the swarm.
//
// What comes out of it is a hint. Every member holds the keys and can lie about
// every other one, so nothing may be decided by it: it is a reason to look.
// It carries no data but a node's boot and version, and it does not make, store
// or pass on keys.
package gossip

import (
	"context"
	"crypto/rand"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// Port is where nodes gossip unless a test wants another one.
	Port = 7946

	// retry is how long a port that is taken is left alone.
	retry = 30 * time.Second
	// reconnect is how often members that are missing are looked for.
	reconnect = 2 * time.Second
)

// Config is what gossip needs.
type Config struct {
	Port    uint16 // 0 is Port
	Version string // of this node's program
	Logger  *slog.Logger
	// Changed is told that a member seems to be dead, and that it is alive again
	// or nothing is believed of it any more. It must not block.
	Changed func(node string, alive bool)
}

// State is what is to be. The zero State is to do nothing.
type State struct {
	Cluster, NodeID string
	// Peers are the members, this node too: what it is listed with is what it
	// listens on.
	Peers []Peer
	// Version is that of Keys, 32 bytes each, of which the first is sent with.
	Version uint64
	Keys    [][]byte
}

// Peer is a member and its address.
type Peer struct {
	NodeID string
	Addr   netip.Addr
}

// own is where this node is listed; not valid if it is not.
func (s *State) own() netip.Addr {
	for _, p := range s.Peers {
		if p.NodeID == s.NodeID && s.NodeID != "" {
			return p.Addr
		}
	}
	return netip.Addr{}
}

// Gossip is one node's part in it.
type Gossip struct {
	cfg  Config
	boot [bootSize]byte // tells this run of the node from every other
	news chan struct{}  // size 1: want has changed
	// running is set while the node gossips; owned by Run.
	running atomic.Pointer[member]

	mu   sync.Mutex
	want State           // guarded by mu
	dead map[string]bool // guarded by mu: what Changed was told
}

// New is gossip that has nothing to do yet.
func New(cfg Config) *Gossip {
	if cfg.Port == 0 {
		cfg.Port = Port
	}
	g := &Gossip{cfg: cfg, news: make(chan struct{}, 1), dead: map[string]bool{}}
	_, _ = rand.Read(g.boot[:]) // which never fails
	return g
}

// Set says what is to be. It may be called at any time and does not wait.
func (g *Gossip) Set(s State) {
	g.mu.Lock()
	g.want = s
	g.mu.Unlock()
	select {
	case g.news <- struct{}{}:
	default:
	}
}

// Alive are the members that are believed to be alive, this node too, in the
// order of their IDs; none while it does not gossip.
func (g *Gossip) Alive() []string {
	m := g.running.Load()
	if m == nil {
		return nil
	}
	return m.alive()
}

// Run makes it so until ctx ends. That it cannot is logged and no error: the
// node does without.
func (g *Gossip) Run(ctx context.Context) error {
	defer g.stop()
	look := time.NewTicker(reconnect)
	defer look.Stop()
	var again time.Time // not before this is it tried to listen
	for {
		g.mu.Lock()
		want := g.want
		g.mu.Unlock()
		if m := g.running.Load(); m != nil && !m.suits(&want) {
			g.stop()
			again = time.Time{}
		}
		if g.running.Load() == nil && len(want.Keys) > 0 && want.own().IsValid() && !time.Now().Before(again) {
			m, err := g.start(ctx, &want)
			if err != nil {
				g.cfg.Logger.WarnContext(ctx, "node does without gossip", "addr", want.own(), "port", g.cfg.Port, "err", err)
				again = time.Now().Add(retry)
			}
			g.running.Store(m)
		}
		if m := g.running.Load(); m != nil {
			before := m.version
			if err := m.update(&want); err != nil {
				g.cfg.Logger.WarnContext(ctx, "keys not taken over", "version", want.Version, "err", err)
			}
			if m.version != before {
				g.cfg.Logger.DebugContext(ctx, "took over keys", "version", m.version, "keys", len(want.Keys))
			}
			g.clear(m.peers.Load())
			m.reconnect()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-g.news:
		case <-look.C:
		}
	}
}

func (g *Gossip) stop() {
	m := g.running.Swap(nil)
	if m == nil {
		return
	}
	if err := m.close(); err != nil {
		g.cfg.Logger.Debug("gossip ended", "err", err)
	}
	g.clear(&peers{})
}

// believe passes on what is believed of a member, if that is another than before.
func (g *Gossip) believe(node string, alive bool) {
	g.mu.Lock()
	was := g.dead[node]
	if alive {
		delete(g.dead, node)
	} else {
		g.dead[node] = true
	}
	g.mu.Unlock()
	if was == alive {
		g.cfg.Changed(node, alive)
	}
}

// clear takes back what was said of nodes that are not among the peers.
func (g *Gossip) clear(p *peers) {
	g.mu.Lock()
	dead := slices.Sorted(maps.Keys(g.dead))
	g.mu.Unlock()
	for _, node := range dead {
		if _, ok := p.addr[node]; !ok {
			g.believe(node, true)
		}
	}
}
