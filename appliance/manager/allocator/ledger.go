package allocator

import (
	"net/netip"
	"time"

	"skep/net/ipam"
	"skep/store"
	"skep/store/object"
)

// ledger is the sum of what the objects in the store say of addresses: a book
// for each network. It follows the store, so that a round costs what changed.
type ledger struct {
	// seen is the snapshot that the books are of; nil at first.
	seen  *store.Snapshot
	books map[string]*ipam.Book // by network
	// given is what was handed out in the last round and may never be written.
	given []claim
}

// claim is one object's hold of an address.
type claim struct {
	network string
	address netip.Addr
}

func newLedger() *ledger { return &ledger{books: map[string]*ipam.Book{}} }

// claims are the addresses that an object holds.
func claims(o object.Object) (out []claim) {
	switch o := o.(type) {
	case *object.Network:
		if o.IPAMOptions == nil || o.VNI == 0 {
			return nil
		}
		for _, c := range o.IPAMOptions.Configs {
			out = append(out, claim{o.ID, c.Gateway})
		}
		for _, a := range o.Auxiliary {
			out = append(out, claim{o.ID, a})
		}
	case *object.Service:
		for _, v := range o.Endpoint.VirtualIPs {
			out = append(out, claim{v.NetworkID, v.Addr.Addr()})
		}
	case *object.Task:
		if object.Over(o) {
			return nil
		}
		for _, n := range o.Networks {
			out = appendClaims(out, n)
		}
	case *object.Guest:
		out = appendClaims(out, o.Network)
	}
	return out
}

func appendClaims(out []claim, n object.TaskNetwork) []claim {
	for _, a := range n.Addresses {
		out = append(out, claim{n.ID, a.Addr()})
	}
	return out
}

// gave notes that an address, which its book holds already, was handed out.
func (l *ledger) gave(c claim) { l.given = append(l.given, c) }

// giveNetwork hands out the addresses that a network itself has.
func (l *ledger) giveNetwork(n *object.Network) {
	for _, c := range claims(n) {
		l.book(n.ID).Hold(c.address)
		l.gave(c)
	}
}

// undo takes back all but the first n of what was handed out. Before a round
// that is everything: what was written comes again with the objects.
func (l *ledger) undo(n int) {
	for _, c := range l.given[n:] {
		if b := l.books[c.network]; b != nil {
			b.Drop(c.address)
		}
	}
	l.given = l.given[:n]
}

// follow takes in what changed, and reports whether something was let go.
func (l *ledger) follow(ch store.Changes, now time.Time) (freed bool) {
	for _, k := range ch.Keys {
		old, o := l.seen.Get(k.Kind, k.ID), ch.Snapshot.Get(k.Kind, k.ID)
		if old == o {
			continue
		}
		// In this order, so that what is kept does not rest.
		l.hold(o)
		freed = l.drop(old, now) || freed
		if k.Kind == object.KindNetwork && o == nil {
			delete(l.books, k.ID)
			freed = true
		}
	}
	l.seen = ch.Snapshot
	return freed
}

func (l *ledger) hold(o object.Object) {
	for _, c := range claims(o) {
		l.book(c.network).Hold(c.address)
	}
}

func (l *ledger) drop(o object.Object, now time.Time) (freed bool) {
	for _, c := range claims(o) {
		if b := l.books[c.network]; b != nil {
			freed = b.Release(c.address, now) || freed
		}
	}
	return freed
}

func (l *ledger) book(network string) *ipam.Book {
	b := l.books[network]
	if b == nil {
		b = ipam.NewBook()
		l.books[network] = b
	}
	return b
}

// rebuild sums all objects up. It keeps what an earlier sum knows of addresses
// that were let go since.
func (l *ledger) rebuild(snap *store.Snapshot, now time.Time) (freed bool) {
	before := l.books
	*l = ledger{seen: snap, books: map[string]*ipam.Book{}}
	for n := range snap.Networks.All() {
		l.book(n.ID)
		l.hold(n)
	}
	latest := latest{}
	for s := range snap.Services.All() {
		l.hold(s)
		latest.see(s)
	}
	for g := range snap.Guests.All() {
		l.hold(g)
		latest.see(g)
	}
	for t := range snap.Tasks.All() {
		l.hold(t)
		latest.see(t)
	}
	latest.resume(l)
	for t := range snap.Tasks.All() {
		l.restEnded(t, now)
	}
	for id, b := range before {
		if l.books[id] != nil {
			l.books[id].Inherit(b, now)
		}
	}
	return true
}

// restEnded lets the addresses of a task that ended lately rest, as far as its
// object tells of it.
func (l *ledger) restEnded(t *object.Task, now time.Time) {
	if !object.Over(t) || t.UpdatedAt.After(now) || now.Sub(t.UpdatedAt) >= ipam.Quarantine {
		return
	}
	for _, n := range t.Networks {
		if b := l.books[n.ID]; b != nil {
			for _, a := range n.Addresses {
				b.Rest(a.Addr(), t.UpdatedAt.Add(ipam.Quarantine))
			}
		}
	}
}

// latest finds the address of each network and family that was given last, as
// far as it can be told: that of the newest object.
type latest map[latestKey]latestValue

type latestKey struct {
	network string
	v6      bool
}

type latestValue struct {
	at      time.Time
	address netip.Addr
}

func (l latest) see(o object.Object) {
	at := o.Metadata().CreatedAt
	var all []claim
	switch o := o.(type) {
	case *object.Task: // also if it ended
		for _, n := range o.Networks {
			all = appendClaims(all, n)
		}
	default:
		all = claims(o)
	}
	for _, c := range all {
		k := latestKey{c.network, c.address.Is6()}
		have := l[k]
		if order := at.Compare(have.at); order > 0 || (order == 0 && have.address.Less(c.address)) {
			l[k] = latestValue{at, c.address}
		}
	}
}

func (l latest) resume(to *ledger) {
	for k, v := range l {
		if b := to.books[k.network]; b != nil {
			b.Resume(v.address)
		}
	}
}
