package scheduler

import (
	"cmp"
	"slices"
	"time"

	"skep/store/object"
)

const (
	// flaky is how many failures of a revision in recent make a node one to avoid.
	flaky  = 5
	recent = 5 * time.Minute
)

// candidate is a node that fits a group, with what ranks it.
type candidate struct {
	*member
	failures, same, total int // failures of the group; active tasks of the service; of all
	at                    int // in the order of IDs
}

// better reports whether a is to be preferred: the one with fewer failures of
// late if either has many, then with fewer tasks of the service, then of all.
func better(a, b *candidate) bool {
	if a.failures != b.failures && max(a.failures, b.failures) >= flaky {
		return a.failures < b.failures
	}
	if a.same != b.same {
		return a.same < b.same
	}
	if a.total != b.total {
		return a.total < b.total
	}
	return a.at < b.at
}

// branch is a part of the nodes: all that share the labels which the placement
// preferences up to here name. Tasks are spread evenly over the children of a
// branch, and at the leaves over the nodes by rank.
type branch struct {
	label    string
	tasks    int // active tasks of the service, on unfit nodes too
	children heap[*branch]
	nodes    heap[candidate]
}

func lessTasks(a, b **branch) bool {
	if (*a).tasks != (*b).tasks {
		return (*a).tasks < (*b).tasks
	}
	return (*a).label < (*b).label
}

// grow makes the tree of the nodes that fit, and counts why others do not.
func (m *mirror) grow(g group, d *demand, why *tally, now time.Time) *branch {
	root := &branch{}
	kids := map[*branch]map[string]*branch{}
	for at, n := range m.order {
		same := n.active[g.service]
		b := root
		b.tasks += same
		for _, descriptor := range d.descriptors {
			label, ok := object.Label(descriptor, &n.node.Node)
			if !ok {
				continue
			}
			next := kids[b][label]
			if next == nil {
				next = &branch{label: label}
				if kids[b] == nil {
					kids[b] = map[string]*branch{}
				}
				kids[b][label] = next
				b.children.items = append(b.children.items, next)
			}
			b = next
			b.tasks += same
		}
		if f := d.check(n, g); f != fit {
			why[f]++
			continue
		}
		b.nodes.items = append(b.nodes.items, candidate{n, n.failed(g, now), same, n.total, at})
	}
	root.ripen()
	return root
}

// ripen drops branches without nodes and puts the rest in order. It reports
// whether anything is left.
func (b *branch) ripen() bool {
	b.children.items = slices.DeleteFunc(b.children.items, func(c *branch) bool { return !c.ripen() })
	b.children.less, b.nodes.less = lessTasks, better
	b.children.init()
	b.nodes.init()
	return len(b.children.items)+len(b.nodes.items) > 0
}

// pick takes the place for one more task, or nil if there is none; take
// accounts for the task, or says why the node no longer fits.
func (b *branch) pick(why *tally, take func(*member) filter) *member {
	for len(b.children.items) > 0 {
		c := b.children.items[0]
		if n := c.pick(why, take); n != nil {
			b.tasks++
			b.children.down(0)
			return n
		}
		b.children.pop()
	}
	for len(b.nodes.items) > 0 {
		c := &b.nodes.items[0]
		n := c.member
		if f := take(n); f != fit {
			why[f]++
			b.nodes.pop()
			continue
		}
		c.same++
		c.total++
		b.tasks++
		b.nodes.down(0)
		return n
	}
	return nil
}

// failed is how many tasks of the group failed on the node of late.
func (n *member) failed(g group, now time.Time) int {
	if len(n.failures) == 0 {
		return 0
	}
	count := 0
	for _, at := range n.failures[g] {
		if now.Sub(at) < recent {
			count++
		}
	}
	return count
}

func compareTasks(a, b *object.Task) int {
	return cmp.Or(cmp.Compare(a.Slot, b.Slot), cmp.Compare(a.ID, b.ID))
}
