package dispatcher

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/endpoints"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// slack is how long a node may take for the last news of its networks before it
// is sent more: until then what comes goes together.
const slack = 200 * time.Millisecond

// spread is what the nodes are told of the networks.
type spread struct {
	// followed is what the audience has followed: assignments are made of it, so
	// that none stops a task before it is known whether that has to wait.
	followed atomic.Pointer[store.Snapshot]

	mu       sync.Mutex // taken after the term's, if both are
	audience *endpoints.Audience
}

// followNetworks takes in what changed.
func (t *term) followNetworks(ch store.Changes, now time.Time) endpoints.Turn {
	t.spread.mu.Lock()
	defer t.spread.mu.Unlock()
	turn := t.spread.audience.Follow(ch, now)
	t.spread.followed.Store(ch.Snapshot)
	if len(turn.Late) > 0 {
		t.cfg.Logger.Warn("let tasks stop before these nodes had ceased to lead connections to them", "nodes", turn.Late)
	}
	for _, err := range turn.Refused {
		t.cfg.Logger.Warn("nodes not told of something on a network", "err", err)
	}
	return turn
}

func (p *spread) since(s *session) []*wire.Networks {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.audience.Since(s.node, s.cursor)
}

func (p *spread) held(task string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.audience.Held(task)
}

func (p *spread) join(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.cursor = p.audience.Join(s.node)
}

func (p *spread) leave(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.audience.Leave(s.node, s.cursor)
}

// release lets the nodes know which tasks are to stop now. The caller holds mu.
func (t *term) release(stops []endpoints.Stop) {
	for _, s := range stops {
		t.wake(s.Node, func(o *outbox) { o.assign = true })
	}
}

// programmed takes in what a node has in its kernel.
func (t *term) programmed(s *session, p *wire.Programmed) {
	t.spread.mu.Lock()
	released, current := t.spread.audience.Programmed(s.node, s.cursor, p.Networks)
	t.spread.mu.Unlock()
	if current {
		s.poke(func(o *outbox) { o.unprogrammed = false })
	}
	changed := leaving(t.cfg.Store.Snapshot(), s.node, p.Leaving)
	t.mu.Lock()
	defer t.mu.Unlock()
	s.tunnels = p.Tunnels
	t.release(released)
	if len(changed) > 0 {
		t.reports = append(t.reports, report{node: s.node, leaving: changed})
		signal(t.wakeup)
	}
}

// leaving are those of a node's tasks of which the store is yet to know that the
// node leads nothing to them, or does again. Of those that end by the managers'
// will or have ended everybody knows.
func leaving(snap *store.Snapshot, node string, all []string) map[string]bool {
	changed := map[string]bool{}
	for t := range snap.Tasks.By(store.ByNode, node) {
		if len(t.Networks) == 0 || object.Ended(t.Status.State) || object.Rank(t.DesiredState) >= object.Rank(swarm.TaskStateShutdown) {
			continue
		}
		if is := slices.Contains(all, t.ID); is != t.Leaving {
			changed[t.ID] = is
		}
	}
	return changed
}

// tellNetworks sends one part of what the node is to know of its networks, and
// says whether it then knows all that is news. Beats are answered between parts.
func (t *term) tellNetworks(s *session, sent *sent, news bool) (whole bool, err error) {
	if len(sent.networks) > 0 {
		if news { // not of this set
			s.poke(func(o *outbox) { o.networks = true })
		}
	} else if news {
		news = false
		sent.networks = t.spread.since(s)
	}
	if len(sent.networks) == 0 {
		return true, nil
	}
	part := sent.networks[0]
	if !part.More { // before it can be answered
		s.poke(func(o *outbox) { o.unprogrammed = true })
	}
	sent.networks = sent.networks[1:]
	if err := s.send(&wire.Message{Networks: part}); err != nil {
		return false, err
	}
	if part.More {
		s.poke(func(*outbox) {})
		return false, nil
	}
	sent.slack.Reset(slack)
	return !news, nil
}
