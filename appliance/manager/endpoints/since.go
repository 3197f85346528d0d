package endpoints

import (
	"maps"
	"slices"

	"skep/appliance/wire"
)

// Cursor is how far a node was told, in one session.
type Cursor struct {
	begun          bool
	version, acked uint64
	// hosts: the node was told of them. One that is on no network has no use for
	// them, and they are many.
	hosts bool
	// networks are those that the node was told of, as they were born.
	networks map[string]uint64
}

// knows tells whether the node was told what is on a network.
func (c *Cursor) knows(b *Board, network string) bool {
	o := b.networks[network]
	born, ok := c.networks[network]
	return ok && o != nil && o.born == born
}

// Since is what a node is to be told that is at the cursor, which moves on: in
// parts that fit frames, none if there is nothing. Who is far behind is told
// everything.
func (b *Board) Since(node string, c *Cursor) []*wire.Networks {
	want := b.wanted(node)
	if c.begun && len(want)+len(c.networks) == 0 && !c.hosts {
		c.version = b.version // as for most nodes of a swarm without networks
		return nil
	}
	set := &wire.Networks{Complete: !c.begun || b.forgot(c, want), Version: b.version}
	if set.Complete {
		*c = Cursor{begun: true, acked: c.acked}
	}
	switch {
	case c.hosts:
		set.Items = slices.AppendSeq(set.Items, b.hosts.since(c.version))
	case len(want) > 0:
		set.Items, c.hosts = b.hosts.appendAll(set.Items), true
	}
	for id := range c.networks {
		if _, still := want[id]; !still || !c.knows(b, id) {
			set.Items = append(set.Items, gone(wire.NetworkItem{Network: &wire.Network{ID: id}}))
		}
	}
	networks := make(map[string]uint64, len(want))
	for id, o := range want {
		networks[id] = o.born
		if !c.knows(b, id) {
			set.Items = o.appendAll(append(set.Items, o.item))
			continue
		}
		if o.changed > c.version {
			set.Items = append(set.Items, o.item)
		}
		set.Items = slices.AppendSeq(set.Items, o.since(c.version))
	}
	c.version, c.networks = b.version, networks
	if len(set.Items) == 0 && !set.Complete {
		return nil
	}
	return set.Parts()
}

// wanted are the networks that a node is to be told of.
func (b *Board) wanted(node string) map[string]*overlay {
	if len(b.on[node])+len(b.ingress) == 0 {
		return nil
	}
	want := make(map[string]*overlay, len(b.on[node])+len(b.ingress))
	add := func(id string) {
		if o := b.networks[id]; o != nil && o.known {
			want[id] = o
		}
	}
	for id := range b.on[node] {
		add(id)
	}
	for id := range b.ingress {
		add(id)
	}
	return want
}

// forgot tells whether something was forgotten that the cursor has not passed.
func (b *Board) forgot(c *Cursor, want map[string]*overlay) bool {
	if c.hosts && c.version < b.hosts.base {
		return true
	}
	for id, o := range want {
		if c.knows(b, id) && c.version < o.base {
			return true
		}
	}
	return false
}

// interested are the nodes that are to be told of one of the networks, and that
// may be alive.
func (b *Board) interested(networks []string) []string {
	nodes := map[string]bool{}
	for _, id := range networks {
		if b.ingress[id] {
			return slices.Collect(maps.Keys(b.up))
		}
		for node := range b.networks[id].nodes {
			if b.up[node] {
				nodes[node] = true
			}
		}
	}
	return slices.Collect(maps.Keys(nodes))
}
