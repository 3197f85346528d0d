package membership

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// peers are the managers that the node knows of, and which of them it believes
// to lead.
type peers struct {
	mu     sync.Mutex
	all    []wire.Peer // guarded by mu
	leader string      // guarded by mu; a node ID
	lost   string      // guarded by mu; a node that is asked last
}

// set is false if these are known already.
func (p *peers) set(all []wire.Peer) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Equal(p.all, all) {
		return false
	}
	p.all = slices.Clone(all)
	return true
}

func (p *peers) list() []wire.Peer {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

func (p *peers) lead(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leader, p.lost = node, ""
}

// doubt notes that what connected the node to the one that leads has ended. If
// that one is dead, to ask it first would be to wait.
func (p *peers) doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leader != "" {
		p.leader, p.lost = "", p.leader
	}
}

// addr is where a manager is reached, or "" if that is not known.
func (p *peers) addr(node string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.all {
		if q.NodeID == node {
			return q.Addr
		}
	}
	return ""
}

// inOrder is whom to ask: who leads first, then the others, at random, and last
// who led when the connection to it was lost.
func (p *peers) inOrder() []wire.Peer {
	all := p.list()
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	p.mu.Lock()
	rank := map[string]int{p.lost: 1, p.leader: -1}
	p.mu.Unlock()
	slices.SortStableFunc(all, func(a, b wire.Peer) int { return rank[a.NodeID] - rank[b.NodeID] })
	return all
}

// asking is how long one manager may take to answer, or to send on to another.
const asking = 5 * time.Second

// onLeader asks the managers until one leads.
func onLeader[T any](ctx context.Context, p *peers, ask func(context.Context, wire.Peer) (T, error)) (T, error) {
	var errs []error
	tried := map[wire.Peer]bool{}
	for queue := p.inOrder(); len(queue) > 0; {
		to := queue[0]
		queue = queue[1:]
		if tried[to] || to.Addr == "" {
			continue
		}
		tried[to] = true
		v, err := ask(ctx, to)
		if err == nil {
			p.lead(to.NodeID)
			return v, nil
		}
		errs = append(errs, err)
		if leader, ok := redirected(err); ok {
			queue = append([]wire.Peer{leader}, queue...)
		}
		if ctx.Err() != nil {
			break
		}
	}
	var none T
	if len(errs) == 0 {
		return none, object.Errorf(errdefs.ErrUnavailable, "no manager of the swarm is known")
	}
	return none, errors.Join(errs...)
}

// managersOf are the managers that the store knows addresses of.
func managersOf(s *store.Snapshot) []wire.Peer {
	var all []wire.Peer
	for n := range s.Nodes.All() {
		if n.ManagerStatus != nil && n.ManagerStatus.Addr != "" {
			all = append(all, wire.Peer{NodeID: n.ID, Addr: n.ManagerStatus.Addr})
		}
	}
	return all
}
