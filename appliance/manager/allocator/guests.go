package allocator

import (
	"fmt"
	"net/netip"
	"slices"

	"skep/store"
	"skep/store/object"
)

// allocateGuests gives guests their addresses, the oldest first.
func (r *round) allocateGuests(ids []string) {
	var todo []*object.Guest
	for _, id := range unique(ids) {
		g, ok := r.snap.Guests.Get(id)
		if !ok || len(g.Network.Addresses) > 0 {
			r.wait(store.Key{Kind: object.KindGuest, ID: id}, false, false)
			continue
		}
		todo = append(todo, g)
	}
	slices.SortStableFunc(todo, func(a, b *object.Guest) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for _, g := range todo {
		mark := len(r.ledger.given)
		addresses, why := r.guestAddresses(g)
		if why != "" {
			r.ledger.undo(mark)
		}
		r.wait(store.KeyOf(g), why != "", why == "")
		if why != "" && why == g.Problem {
			continue
		}
		g = g.Clone().(*object.Guest)
		g.Network.Addresses, g.Problem = addresses, why
		r.changes.Update = append(r.changes.Update, g)
	}
}

func (r *round) guestAddresses(g *object.Guest) (out []netip.Prefix, why string) {
	s, why := r.site(g.Network.ID)
	switch {
	case why != "":
		return nil, why
	case !s.Spec.Attachable:
		return nil, fmt.Sprintf("network %s not manually attachable", s.Spec.Name)
	}
	for _, a := range g.Wanted {
		if why := r.takeWanted(s, a); why != "" {
			return nil, why
		}
	}
	for _, f := range s.families {
		asked := false
		for _, a := range g.Wanted {
			if f.has(a) {
				asked, out = true, append(out, f.prefix(a))
			}
		}
		if asked {
			continue
		}
		p, why := r.take(s, f)
		if why != "" {
			return nil, why
		}
		out = append(out, p)
	}
	return out, ""
}

// takeWanted hands out the very address that the user asks for. It may still be
// at rest: the user knows best.
func (r *round) takeWanted(s *site, a netip.Addr) (why string) {
	for _, f := range s.families {
		for _, hosts := range f.hosts {
			if !hosts.Contains(a) {
				continue
			}
			if s.book.Held(a) {
				return fmt.Sprintf("address %s is already in use on network %s", a, s.Spec.Name)
			}
			s.book.Hold(a)
			r.ledger.gave(claim{s.ID, a})
			return ""
		}
	}
	return fmt.Sprintf("no subnet of network %s has the address %s", s.Spec.Name, a)
}
