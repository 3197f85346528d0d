package wire

// Parts cuts what is told of the nodes into messages whose frames are small enough.
func (n *Nodes) Parts() []*Nodes {
	const room = MaxFrame - 4096
	part, size := &Nodes{Complete: n.Complete}, 0
	parts := []*Nodes{part}
	fit := func(bytes int) {
		if size += bytes; size > room {
			part.More = true
			part, size = &Nodes{}, bytes
			parts = append(parts, part)
		}
	}
	for _, p := range n.Items {
		fit(len(p.NodeID) + len(p.Addr) + 32)
		part.Items = append(part.Items, p)
	}
	for _, id := range n.Gone {
		fit(len(id) + 8)
		part.Gone = append(part.Gone, id)
	}
	return parts
}
