package wire_test

import (
	"fmt"
	"testing"

	"skep/appliance/wire"
)

func TestNodes_PartsFitFrames(t *testing.T) {
	const many = 50000
	all := &wire.Nodes{Complete: true}
	for i := range many {
		all.Items = append(all.Items, wire.Peer{NodeID: fmt.Sprintf("%025d", i), Addr: "2001:db8:1111:2222:3333:4444:5555:6666"})
		all.Gone = append(all.Gone, fmt.Sprintf("%024dx", i))
	}
	parts := all.Parts()
	items, gone := 0, 0
	for i, p := range parts {
		if _, err := send(&wire.Message{Nodes: p}); err != nil {
			t.Errorf("part %d of %d: %v", i, len(parts), err)
		}
		if p.Complete != (i == 0) || p.More != (i < len(parts)-1) {
			t.Errorf("part %d of %d: complete %t, more %t", i, len(parts), p.Complete, p.More)
		}
		items, gone = items+len(p.Items), gone+len(p.Gone)
	}
	if items != many || gone != many || len(parts) < 2 {
		t.Errorf("got %d items and %d gone in %d parts", items, gone, len(parts))
	}
	if parts := (&wire.Nodes{Complete: true}).Parts(); len(parts) != 1 || !parts[0].Complete {
		t.Errorf("no nodes: got %d parts", len(parts))
	}
}
