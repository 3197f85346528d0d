// SPDX-License-Identifier: Apache-2.0

// Package dns answers containers' questions for names.
//
// Each container asks [Address], in its own network namespace. A [Resolver]
// has sockets there, answers what a [State] tells it of the container's
// networks, and asks other name servers for the rest. Sockets stay in the
// namespace that they were opened in; the rules that lead port 53 to them
// (table [Table]) outlive this process, and a new one finds its port again.
//
// It decides nothing: what exists, and who is led to what, is given to it, and
// an answer is what that says at that moment. Nothing is kept of the answers
// of others.
package dns

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
)

// Config is what a resolver needs.
type Config struct {
	// RunDir is where each container's port is kept, in dns/<container>, for the
	// process after this one. Empty: it is not kept.
	RunDir string
	// Upstreams are the node's name servers. They are asked from the namespace
	// that this process is in, so one on 127.0.0.1 will do. The default is what
	// /etc/resolv.conf says at the time.
	Upstreams func() []netip.AddrPort
	Logger    *slog.Logger
}

// Resolver answers the containers of a node. It may be used by several goroutines.
type Resolver struct {
	cfg     Config
	forward *forwarder
	state   atomic.Pointer[state]
	wake    chan struct{} // there are sockets in idle

	mu      sync.Mutex
	servers map[string]*server
	idle    []*sockets // opened and not yet served
}

// New makes a resolver that knows nothing.
func New(cfg Config) *Resolver {
	if cfg.Upstreams == nil {
		cfg.Upstreams = (&hostConfig{path: "/etc/resolv.conf"}).upstreams
	}
	r := &Resolver{cfg: cfg, forward: newForwarder(), wake: make(chan struct{}, 1), servers: map[string]*server{}}
	r.state.Store(&state{})
	return r
}

// state is a [State], each network with its index.
type state struct {
	version  uint64
	networks map[string]arranged
}

// arranged is a network and what makes its index, when it is first asked for.
type arranged struct {
	from  *Network
	index func() *index
}

// Set says what containers are answered from now on.
func (r *Resolver) Set(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.state.Load()
	next := &state{version: s.Version, networks: make(map[string]arranged, len(s.Networks))}
	for id, n := range s.Networks {
		a := now.networks[id]
		if a.from != n {
			a = arranged{n, sync.OnceValue(func() *index { return newIndex(n) })}
		}
		next.networks[id] = a
	}
	r.state.Store(next)
}

// Version is that of the last [State] that was set.
func (r *Resolver) Version() uint64 { return r.state.Load().version }

// Run serves the sockets that are opened, until ctx ends. Then all sockets are
// closed; rules and ports stay for the next process.
func (r *Resolver) Run(ctx context.Context) error {
	var serving sync.WaitGroup
	defer serving.Wait()
	for {
		r.mu.Lock()
		idle := r.idle
		r.idle = nil
		r.mu.Unlock()
		for _, s := range idle {
			serving.Go(func() { s.serve(ctx) })
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-r.wake:
		}
	}
}

// serve has [Resolver.Run] serve sockets.
func (r *Resolver) serve(s *sockets) {
	r.mu.Lock()
	r.idle = append(r.idle, s)
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Open makes the container's name server, and has it served from now on. If it
// is there already, it goes on with what the client now says.
func (r *Resolver) Open(ctx context.Context, c Client) error {
	if err := c.check(); err != nil {
		return err
	}
	for {
		opened, err := r.server(c.ID).open(ctx, &c)
		if opened || err != nil {
			return err
		}
		// It was shut between the two.
	}
}

func (r *Resolver) server(id string) *server {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.servers[id]
	if s == nil {
		s = &server{resolver: r, id: id}
		r.servers[id] = s
	}
	return s
}

// Shut closes the container's sockets and forgets its port. The rules are left
// to end with the namespace.
func (r *Resolver) Shut(id string) {
	r.mu.Lock()
	s := r.servers[id]
	delete(r.servers, id)
	r.mu.Unlock()
	if s != nil {
		s.shut()
	}
}

// Retain shuts all but the containers named, and forgets the ports of those
// that an earlier process served.
func (r *Resolver) Retain(ids []string) {
	keep := make(map[string]bool, len(ids))
	for _, id := range ids {
		keep[id] = true
	}
	for _, s := range r.opened() {
		if !keep[s.id] {
			r.Shut(s.id)
		}
	}
	ports(r.cfg.RunDir).retain(keep)
}

// Check mends the rules of containers whose rules are not as they were made,
// and says how many these were.
func (r *Resolver) Check(ctx context.Context) (int, error) {
	repaired := 0
	var errs []error
	for _, s := range r.opened() {
		if ctx.Err() != nil {
			errs = append(errs, ctx.Err())
			break
		}
		mended, err := s.check()
		if mended {
			r.cfg.Logger.WarnContext(ctx, "led a container to its name server anew", "container", s.id)
			repaired++
		}
		errs = append(errs, err)
	}
	return repaired, errors.Join(errs...)
}

func (r *Resolver) opened() []*server {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*server, 0, len(r.servers))
	for _, s := range r.servers {
		out = append(out, s)
	}
	return out
}
