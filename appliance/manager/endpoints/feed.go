package endpoints

import (
	"container/list"
	"iter"
	"slices"

	"skep/appliance/wire"
)

// remembered is how many facts that are gone a feed remembers at least: who has
// not heard of older ones is told everything.
const remembered = 1024

// kind is what a fact of a feed is about.
type kind byte

const (
	kindHost kind = iota
	kindService
	kindEndpoint
)

type factKey struct {
	kind kind
	id   string
}

// feed is a set of facts in the order in which they changed last, so that what
// changed since a version costs as much as that is.
type feed struct {
	facts map[factKey]*list.Element
	order *list.List // of *fact; Invariant: versions never decrease
	gone  int        // facts in order that are gone
	// base is the version of the last change that was forgotten: who has not seen
	// it cannot be told by changes.
	base uint64
}

// fact is one item, which may be gone.
type fact struct {
	key     factKey
	item    wire.NetworkItem
	version uint64 // when it changed last
}

func newFeed() feed { return feed{facts: map[factKey]*list.Element{}, order: list.New()} }

// set notes a fact as of a version, and says whether that is news.
func (f *feed) set(k factKey, item wire.NetworkItem, version uint64) bool {
	e := f.facts[k]
	if e == nil {
		f.facts[k] = f.order.PushBack(&fact{k, item, version})
		return true
	}
	was := e.Value.(*fact)
	if was.item.Same(item) {
		return false
	}
	if was.item.Gone {
		f.gone--
	}
	was.item, was.version = item, version
	f.order.MoveToBack(e)
	return true
}

// has tells whether there is such a fact that is not gone.
func (f *feed) has(k factKey) bool {
	e := f.facts[k]
	return e != nil && !e.Value.(*fact).item.Gone
}

// drop notes that a fact is gone, with the item that says so.
func (f *feed) drop(k factKey, gone wire.NetworkItem, version uint64) bool {
	if !f.has(k) {
		return false
	}
	e := f.facts[k]
	was := e.Value.(*fact)
	was.item, was.version = gone, version
	f.order.MoveToBack(e)
	f.gone++
	if live := len(f.facts) - f.gone; f.gone > max(remembered, live) {
		f.forget()
	}
	return true
}

// forget drops the older half of what is gone. It costs a look at everything, and
// comes about once for as many drops.
func (f *feed) forget() {
	over := f.gone / 2
	for e := f.order.Front(); e != nil && over > 0; {
		next := e.Next()
		if was := e.Value.(*fact); was.item.Gone {
			f.order.Remove(e)
			delete(f.facts, was.key)
			f.base = was.version
			f.gone--
			over--
		}
		e = next
	}
}

// since are the facts that changed after a version, the last change first.
func (f *feed) since(version uint64) iter.Seq[wire.NetworkItem] {
	return func(yield func(wire.NetworkItem) bool) {
		for e := f.order.Back(); e != nil; e = e.Prev() {
			if was := e.Value.(*fact); was.version <= version || !yield(was.item) {
				return
			}
		}
	}
}

// appendAll appends the facts that are not gone.
func (f *feed) appendAll(to []wire.NetworkItem) []wire.NetworkItem {
	to = slices.Grow(to, len(f.facts)-f.gone)
	for e := f.order.Front(); e != nil; e = e.Next() {
		if was := e.Value.(*fact); !was.item.Gone {
			to = append(to, was.item)
		}
	}
	return to
}
