package allocator

import (
	"slices"

	"skep/store/object"
)

// allocateSlots gives nodes their places in the routing mesh. They are given in
// turn, so that what a node that is gone leaves behind is not taken for another's.
// Nodes beyond [object.LastSlot] are not part of it.
func (r *round) allocateSlots() {
	taken := map[int]bool{}
	var todo []*object.Node
	var newest *object.Node
	for n := range r.snap.Nodes.All() {
		if n.Slot == 0 {
			todo = append(todo, n)
			continue
		}
		taken[n.Slot] = true
		if newest == nil || n.CreatedAt.After(newest.CreatedAt) || (n.CreatedAt.Equal(newest.CreatedAt) && n.Slot > newest.Slot) {
			newest = n
		}
	}
	slices.SortStableFunc(todo, func(a, b *object.Node) int { return a.CreatedAt.Compare(b.CreatedAt) })
	last := 0
	if newest != nil {
		last = newest.Slot
	}
	for _, n := range todo {
		if len(taken) >= object.LastSlot {
			return
		}
		for last = last%object.LastSlot + 1; taken[last]; last = last%object.LastSlot + 1 {
		}
		taken[last] = true
		n = n.Clone().(*object.Node)
		n.Slot = last
		r.changes.Update = append(r.changes.Update, n)
	}
}
