package dispatcher

import (
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// remembered is how many changes of the roster are told one by one: a session
// that is further behind is told everything.
const remembered = 4096

// roster is where the nodes are. All sessions share it, and each is told what
// changed since it was told last.
type roster struct {
	mu    sync.Mutex        // guards all below
	addrs map[string]string // by node
	log   []wire.Peer       // the last changes; one without Addr is gone
	first uint64            // the number of the first in log; the first of all is 1
}

func newRoster() *roster { return &roster{addrs: map[string]string{}, first: 1} }

// place is the address at which a node is reached by others, "" if there is
// none or it is not known: where a manager says it is, or where the node spoke
// from.
func place(snap *store.Snapshot, node string) string {
	n, ok := snap.Nodes.Get(node)
	if !ok {
		return ""
	}
	if n.Spec.Role == swarm.NodeRoleManager && n.ManagerStatus != nil {
		if a, err := netip.ParseAddrPort(n.ManagerStatus.Addr); err == nil {
			return a.Addr().Unmap().String()
		}
	}
	a, err := netip.ParseAddr(n.Status.Addr)
	if err != nil || a.IsUnspecified() {
		return ""
	}
	return a.Unmap().String()
}

// follow notes where the nodes are that changed, and says whether that is news.
func (r *roster) follow(ch store.Changes) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	end := r.end()
	if ch.All {
		for id := range r.addrs {
			r.note(id, place(ch.Snapshot, id))
		}
		for n := range ch.Snapshot.Nodes.All() {
			r.note(n.ID, place(ch.Snapshot, n.ID))
		}
	}
	for _, k := range ch.Keys {
		if k.Kind == object.KindNode {
			r.note(k.ID, place(ch.Snapshot, k.ID))
		}
	}
	news := r.end() != end
	if over := len(r.log) - remembered; over > 0 {
		r.log = slices.Clone(r.log[over:])
		r.first += uint64(over)
	}
	return news
}

func (r *roster) note(node, addr string) {
	if r.addrs[node] == addr {
		return
	}
	if r.addrs[node] = addr; addr == "" {
		delete(r.addrs, node)
	}
	r.log = append(r.log, wire.Peer{NodeID: node, Addr: addr})
}

func (r *roster) end() uint64 { return r.first + uint64(len(r.log)) }

// since is what changed, nil if nothing did; seen is what to call it with next.
// It is 0 for who has been told nothing.
func (r *roster) since(seen uint64) (*wire.Nodes, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if seen == r.end() {
		return nil, seen
	}
	news := &wire.Nodes{Complete: seen < r.first}
	last := r.addrs
	if !news.Complete {
		last = map[string]string{}
		for _, p := range r.log[seen-r.first:] {
			last[p.NodeID] = p.Addr
		}
	}
	for _, id := range slices.Sorted(maps.Keys(last)) {
		if addr := last[id]; addr == "" {
			news.Gone = append(news.Gone, id)
		} else {
			news.Items = append(news.Items, wire.Peer{NodeID: id, Addr: addr})
		}
	}
	return news, r.end()
}
