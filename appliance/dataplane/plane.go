package dataplane

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"skep/appliance/wire"
	"skep/net/balance"
)

// Config is what a Plane needs. All of it is required unless it says otherwise.
type Config struct {
	// NodeID is this node's in the swarm, empty while it is in none.
	NodeID  func() string
	Attach  Attach
	Overlay Overlay
	Mesh    Mesh
	DNS     Resolver
	// ESP is nil if the kernel cannot encrypt: then there are no encrypted
	// networks, and NoESP says why.
	ESP   Encryption
	NoESP error
	// Balance opens the balancer of the namespace at path, with what an earlier
	// process left there.
	Balance func(ctx context.Context, path string) (Balancer, error)
	// MTU is that of the device that has the address; nil means 1500.
	MTU func(netip.Addr) int
	// Search are the node's search domains; nil means that it has none.
	Search func() []string
	// Mode is the part of the kernel that balances, and why it is not IPVS if it is
	// not; net/balance's Probe is one.
	Mode func(context.Context) (mode balance.Mode, reason string, err error)
	// Lacks are parts that the kernel has not, in words.
	Lacks []string
	// Echo and Ask are how [Plane.Check] asks from a container's namespace:
	// net/echo's and net/dns's.
	Echo func(ctx context.Context, path string, sources, targets []netip.Addr) (map[netip.Addr]time.Duration, error)
	Ask  func(ctx context.Context, path, name string) ([]netip.Addr, error)
	// Acked is told what the kernel and the names follow now. It must not block.
	// It may be nil.
	Acked  func(wire.Programmed)
	Logger *slog.Logger
}

// Plane is this node's part of the swarm's networks. Its methods may be called
// from any goroutine.
type Plane struct {
	cfg  Config
	news chan struct{} // size 1: what it is to be may have changed

	mu        sync.Mutex
	view      *wire.NetworkView  // guarded by mu; nil: in no swarm
	tunnels   *wire.Tunnels      // guarded by mu
	told      bool               // guarded by mu: view was set
	suspended map[string]bool    // guarded by mu, as is what it has; nodes
	members   map[string]*member // guarded by mu; by container
	// leaving are endpoints of this node that take less part than the managers
	// say, by task; it is replaced, not changed.
	leaving map[string]part // guarded by mu
	// turns and ended count the rounds of Run that began and that ended; turned is
	// closed when the next one ends.
	turns, ended uint64                   // guarded by mu
	turned       chan struct{}            // guarded by mu
	busy         map[string]chan struct{} // guarded by mu; containers that a verb works on; closed when it is done
	// now is what frames can be sent on, and what containers that connect follow.
	// Only Run replaces it.
	now     *desired      // guarded by mu
	changed chan struct{} // guarded by mu; closed when now is replaced
	// adopted are the networks that containers of an earlier process are on, until
	// there is a first plan.
	adopted map[string]bool // guarded by mu
	began   time.Time
	// fault is why the last plan was not followed, nil if it was.
	fault error // guarded by mu
	// repaired counts what was mended but for frames.
	repaired atomic.Uint64
	// sealed: the kernel may have been told to encrypt. Only Run knows it.
	sealed bool
}

// New is a Plane that knows the containers of an earlier process, and nothing
// yet of what is to be: until it is told, everything stays as it is.
func New(cfg Config) *Plane {
	if cfg.MTU == nil {
		cfg.MTU = func(netip.Addr) int { return 1500 }
	}
	if cfg.Search == nil {
		cfg.Search = func() []string { return nil }
	}
	if cfg.Acked == nil {
		cfg.Acked = func(wire.Programmed) {}
	}
	p := &Plane{
		cfg: cfg, news: make(chan struct{}, 1), suspended: map[string]bool{}, leaving: map[string]part{},
		members: map[string]*member{}, busy: map[string]chan struct{}{}, adopted: map[string]bool{},
		changed: make(chan struct{}), turned: make(chan struct{}), began: time.Now(), sealed: true,
	}
	for _, at := range cfg.Attach.Attachments() {
		if len(at.Endpoint.Overlays) == 0 {
			continue
		}
		p.members[at.ID] = &member{endpoint: at.Endpoint.Clone(), at: at, up: true}
		for _, o := range at.Endpoint.Overlays {
			p.adopted[o.Network] = true
		}
	}
	return p
}

// Set says what the managers do; nil if the node is in no swarm, and then
// nothing of it remains. It does not wait.
func (p *Plane) Set(v *wire.NetworkView) {
	p.mu.Lock()
	p.view, p.told = v, true
	if v == nil {
		p.tunnels = nil // another swarm has others
	}
	p.prune()
	p.mu.Unlock()
	p.wake()
}

// Suspend is a hint that a node is dead, or is not any more. While it seems to
// be, nothing is led to what is on it, unless nothing else is left, and the
// connections to it are cut.
func (p *Plane) Suspend(node string, dead bool) {
	p.mu.Lock()
	next := maps.Clone(p.suspended)
	if dead {
		next[node] = true
	} else {
		delete(next, node)
	}
	p.suspended = next
	p.mu.Unlock()
	p.wake()
}

// wake has Run look again.
func (p *Plane) wake() {
	select {
	case p.news <- struct{}{}:
	default:
	}
}

// input is what the next plan is to be made from, the last plan, and who
// follows. There is none before anything is known.
func (p *Plane) input() (in input, last *desired, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.told || p.held() {
		return input{}, nil, false
	}
	in = input{
		self: self{node: p.cfg.NodeID()}, view: p.view, suspended: p.suspended, leaving: p.leaving,
		tunnels: p.tunnels, local: map[string]bool{},
	}
	if in.view != nil {
		in.self.mtu = p.cfg.MTU(in.view.Hosts[in.self.node].Address)
	}
	for _, m := range p.members {
		for _, o := range m.endpoint.Overlays {
			in.local[o.Network] = true
		}
	}
	return in, p.now, true
}

// settling is how long what a process before this one made is left alone while
// the swarm says nothing of it.
const settling = 30 * time.Second

// held reports whether what is known may be older than what an earlier process
// made for containers that run on: following it would cut them off, or what is
// led to them.
func (p *Plane) held() bool {
	if p.now != nil || p.view == nil || !p.view.Stored || time.Since(p.began) >= settling {
		return false
	}
	for id := range p.adopted {
		if p.attached(id) {
			return true
		}
	}
	return false
}

// attached reports whether a container is on the network, or waits for it.
func (p *Plane) attached(network string) bool {
	for _, m := range p.members {
		for _, o := range m.endpoint.Overlays {
			if o.Network == network {
				return true
			}
		}
	}
	return false
}
