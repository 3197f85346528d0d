// Package endpoints is what nodes are to be told of the networks of the swarm:
// which hosts, networks, services and endpoints there are, and in which state.
//
// A [Board] derives it from the store, at a cost in proportion to what changed,
// and encodes each fact once. A node is told what is on the networks of its own
// tasks and guests and on the routing mesh, and all hosts once there are any. An [Audience] is
// who is told: it knows how far each node is, and which stops of tasks have to wait
// until the nodes have ceased to lead connections there.
//
// Nothing here does I/O, knows the time or starts a goroutine; nothing but the
// store is derived from, so that any leader tells the same. What a node would
// refuse is not told.
package endpoints

import (
	"maps"
	"slices"
	"strings"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// Board is what there is to be told. It belongs to one goroutine at a time.
type Board struct {
	snap     *store.Snapshot // what was followed, nil at first
	version  uint64          // its index
	hosts    feed
	up       map[string]bool     // the nodes that connections may be led to
	networks map[string]*overlay // by ID
	ingress  map[string]bool     // those of the routing mesh
	members  map[store.Key]*member
	// services are the networks on which each service is told of.
	services map[string]map[string]bool
	// uses are the networks that each service has endpoints on, and on those that
	// each node has endpoints on: how many.
	uses, on counts
}

// counts count what is on a network, by something else.
type counts map[string]map[string]int

// add counts n more, and says whether that is the first or was the last.
func (c counts) add(by, network string, n int) bool {
	m := c[by]
	if m == nil {
		m = map[string]int{}
		c[by] = m
	}
	was := m[network]
	if m[network] = was + n; was+n != 0 {
		return was == 0
	}
	if delete(m, network); len(m) == 0 {
		delete(c, by)
	}
	return true
}

// overlay is a network and what is on it.
type overlay struct {
	feed
	born uint64 // tells it from an earlier one of the same ID
	// item is the network itself. It is told of only while known is set: nodes can
	// do something with it.
	known   bool
	item    wire.NetworkItem
	changed uint64 // the version at which item changed last
	// exists and mesh are what the facts on it were derived with.
	exists, mesh bool
	nodes        map[string]bool // where its endpoints are
}

// member is a task or a guest that has endpoints.
type member struct {
	node, service string
	networks      []string
	state         wire.EndpointState
	// active and drained are the versions at which it became active and began to
	// drain; 0 if it was not, or does not.
	active, drained uint64
	stopping        bool // it is a task that runs and is to stop
}

// News is what following came to.
type News struct {
	// All nodes, or Nodes, are to be told something.
	All   bool
	Nodes map[string]bool
	// Lost are the nodes that went down or were removed.
	Lost []string
	// Stops are the tasks that were active, run, and now are to stop.
	Stops []Stop
	// Refused says what is not told because no node would understand it.
	Refused []error
}

// Stop is a task that is to stop.
type Stop struct {
	Task, Node string
	Networks   []string
	// Active is the version at which nodes began to be told that connections may be
	// led to the task; 0 if that is not known.
	Active uint64
	// Drained is the version at which they began to be told that it drains.
	Drained uint64
}

// NewBoard is a board of nothing.
func NewBoard() *Board {
	return &Board{
		hosts: newFeed(), up: map[string]bool{}, networks: map[string]*overlay{}, ingress: map[string]bool{},
		members: map[store.Key]*member{}, services: map[string]map[string]bool{}, uses: counts{}, on: counts{},
	}
}

// round is one step of following.
type round struct {
	*Board
	first   bool
	news    News
	touched map[string]bool // the networks on which there is news
	// What is to be looked at when the networks and nodes are taken in.
	dirtyServices map[string]bool
	dirtyMembers  map[store.Key]bool
}

// Follow takes in what changed.
func (b *Board) Follow(ch store.Changes) News {
	if ch.Snapshot == b.snap {
		return News{}
	}
	r := &round{
		Board: b, first: b.snap == nil, news: News{Nodes: map[string]bool{}}, touched: map[string]bool{},
		dirtyServices: map[string]bool{}, dirtyMembers: map[store.Key]bool{},
	}
	b.snap, b.version = ch.Snapshot, ch.Snapshot.Index
	keys := ch.Keys
	if ch.All {
		keys = b.all()
	}
	for _, k := range keys {
		switch k.Kind {
		case object.KindNetwork:
			r.network(k.ID)
		case object.KindNode:
			r.node(k.ID)
		case object.KindTask:
			if t, ok := b.snap.Tasks.Get(k.ID); ok && len(t.Networks) > 0 || b.members[k] != nil {
				r.dirtyMembers[k] = true
			}
		case object.KindGuest:
			r.dirtyMembers[k] = true
		case object.KindService:
			r.dirtyServices[k.ID] = true
		case object.KindRevision:
			id, _, _ := strings.Cut(k.ID, "/")
			r.dirtyServices[id] = true
			for t := range b.snap.Tasks.By(store.ByRevision, k.ID) { // of which there are none when it is made and when it goes
				r.dirtyMembers[store.KeyOf(t)] = true
			}
		default:
		}
	}
	for k := range r.dirtyMembers {
		r.member(k)
	}
	for id := range r.dirtyServices {
		r.service(id)
	}
	for id := range r.touched {
		if o := r.networks[id]; o != nil {
			for node := range o.nodes {
				r.news.Nodes[node] = true
			}
		}
	}
	return r.news
}

// all are the keys of everything that is on the board or in the store.
func (b *Board) all() (keys []store.Key) {
	for id := range b.networks {
		keys = append(keys, store.Key{Kind: object.KindNetwork, ID: id})
	}
	for n := range b.snap.Networks.All() {
		keys = append(keys, store.KeyOf(n))
	}
	for k := range b.hosts.facts {
		keys = append(keys, store.Key{Kind: object.KindNode, ID: k.id})
	}
	for n := range b.snap.Nodes.All() {
		keys = append(keys, store.KeyOf(n))
	}
	keys = slices.AppendSeq(keys, maps.Keys(b.members))
	for t := range b.snap.Tasks.All() {
		keys = append(keys, store.KeyOf(t))
	}
	for g := range b.snap.Guests.All() {
		keys = append(keys, store.KeyOf(g))
	}
	for id := range b.services {
		keys = append(keys, store.Key{Kind: object.KindService, ID: id})
	}
	for s := range b.snap.Services.All() {
		keys = append(keys, store.KeyOf(s))
	}
	return keys
}

// refused notes why something is not told.
func (r *round) refused(err error) { r.news.Refused = append(r.news.Refused, err) }

// touch notes that there is news on a network for the nodes that are told of it.
func (r *round) touch(id string) {
	r.touched[id] = true
	r.news.All = r.news.All || r.ingress[id]
}

// encrypted are the nodes that a node shares encrypted networks with, in order.
func (b *Board) encrypted(node string) (peers []string, on bool) {
	all := map[string]bool{}
	for id := range b.on[node] {
		o := b.networks[id]
		if o == nil || !o.known || o.item.Network == nil || !o.item.Network.Encrypted {
			continue
		}
		on = true
		maps.Copy(all, o.nodes)
	}
	delete(all, node)
	return slices.Sorted(maps.Keys(all)), on
}
