package store

import (
	"iter"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"skep/store/object"
)

// Index names an order of a table besides that of its keys.
type Index string

// The indexes. Not every table has each; to ask for one that is not there panics.
const (
	// ByName orders by name (of a node: its host name), upper and lower case alike.
	ByName Index = "name"
	// ByService orders tasks and revisions by service.
	ByService Index = "service"
	// ByRevision orders tasks by the revision they run (object.RevisionKey).
	ByRevision Index = "revision"
	// ByNode orders tasks by node.
	ByNode Index = "node"
)

// Table is all objects of one kind at one moment. It never changes, and so may
// its objects not be changed. Its trees hold only pointers to them.
type Table[T object.Object] struct {
	schema *schema[T]
	rows   *btree.BTreeG[T]
	orders []*btree.BTreeG[T] // as schema.orders
}

// schema says how the objects of a kind are ordered. It is shared by all
// tables of the kind in one store.
type schema[T object.Object] struct {
	kind   object.Kind
	id     order[T]
	orders []order[T]
	// pool holds objects used only to search with.
	pool sync.Pool
}

// order groups the objects by something. Within a group they are ordered by ID.
type order[T object.Object] struct {
	by    Index
	group func(a, b T) int
	// search puts an object into the group that key stands for.
	search func(t T, key string)
}

// by is an order by a string that field points to.
func by[T object.Object](ix Index, field func(T) *string) order[T] {
	return order[T]{
		by:     ix,
		group:  func(a, b T) int { return strings.Compare(*field(a), *field(b)) },
		search: func(t T, key string) { *field(t) = key },
	}
}

func byName[T object.Object](field func(T) *string) order[T] {
	return order[T]{
		by:     ByName,
		group:  func(a, b T) int { return strings.Compare(strings.ToLower(*field(a)), strings.ToLower(*field(b))) },
		search: func(t T, key string) { *field(t) = key },
	}
}

func newTable[S any, T interface {
	*S
	object.Object
}](id order[T], orders ...order[T]) *Table[T] {
	s := &schema[T]{kind: T(nil).Kind(), id: id, orders: orders}
	s.pool.New = func() any { return T(new(S)) }
	t := &Table[T]{schema: s, rows: tree(id.group)}
	for _, o := range orders {
		t.orders = append(t.orders, tree(func(a, b T) int {
			if c := o.group(a, b); c != 0 {
				return c
			}
			return id.group(a, b)
		}))
	}
	return t
}

func tree[T any](compare func(a, b T) int) *btree.BTreeG[T] {
	return btree.NewBTreeGOptions(func(a, b T) bool { return compare(a, b) < 0 }, btree.Options{NoLocks: true})
}

// Get is the object with this ID.
func (t *Table[T]) Get(id string) (T, bool) {
	p := t.schema.pool.Get().(T)
	t.schema.id.search(p, id)
	o, ok := t.rows.Get(p)
	t.schema.pool.Put(p) // only ever searched by ID: no other field is set
	return o, ok
}

// All is every object, in the order of their IDs.
func (t *Table[T]) All() iter.Seq[T] { return t.rows.Scan }

// Len is how many objects there are.
func (t *Table[T]) Len() int { return t.rows.Len() }

// By is the objects of one group of an index, in the order of their IDs.
func (t *Table[T]) By(ix Index, key string) iter.Seq[T] {
	for i, o := range t.schema.orders {
		if o.by != ix {
			continue
		}
		return func(yield func(T) bool) {
			p := t.schema.pool.New().(T)
			o.search(p, key)
			t.orders[i].Ascend(p, func(v T) bool { return o.group(v, p) == 0 && yield(v) })
		}
	}
	panic("table of " + string(t.schema.kind) + " has no index by " + string(ix))
}

// draft is a table that may be changed; nobody else sees it.
func (t *Table[T]) draft() *Table[T] {
	d := &Table[T]{schema: t.schema, rows: t.rows.Copy(), orders: make([]*btree.BTreeG[T], len(t.orders))}
	for i, o := range t.orders {
		d.orders[i] = o.Copy()
	}
	return d
}

func (t *Table[T]) put(o T) {
	old, had := t.rows.Set(o)
	for i, tr := range t.orders {
		if had && t.schema.orders[i].group(old, o) != 0 {
			tr.Delete(old)
		}
		tr.Set(o)
	}
}

func (t *Table[T]) drop(o T) {
	t.rows.Delete(o)
	for _, tr := range t.orders {
		tr.Delete(o)
	}
}
