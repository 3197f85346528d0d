// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"reflect"
	"slices"
)

// change is what one transaction does to a table.
type change struct {
	full bool // the table is new: maps are made, too
	// goneElements and goneChains are removed, in this order: an element names a chain.
	goneElements []Map
	goneChains   []string
	// chains get these rules; those known are emptied first, others are made.
	chains []Chain
	known  map[string]bool
	// maps get these elements.
	maps []Map
}

func (d change) empty() bool {
	return len(d.goneElements) == 0 && len(d.goneChains) == 0 && len(d.chains) == 0 &&
		!slices.ContainsFunc(d.maps, func(m Map) bool { return len(m.Elements) > 0 })
}

// diff is the change that makes next of now. Both have the same maps and the
// same chains with hooks: those belong to the table's form, not its contents.
func diff(now, next Table) change {
	d := change{known: map[string]bool{}}
	d.diffMaps(now, next)
	have := map[string]Chain{}
	for _, c := range now.Chains {
		have[c.Name] = c
	}
	for _, c := range next.Chains {
		old, ok := have[c.Name]
		delete(have, c.Name)
		if ok && slices.EqualFunc(old.Rules, c.Rules, Rule.equal) {
			continue
		}
		d.known[c.Name] = ok
		d.chains = append(d.chains, c)
	}
	for _, c := range now.Chains {
		if _, gone := have[c.Name]; gone {
			d.goneChains = append(d.goneChains, c.Name)
		}
	}
	return d
}

func (d *change) diffMaps(now, next Table) {
	for _, m := range next.Maps {
		i := slices.IndexFunc(now.Maps, func(o Map) bool { return o.Name == m.Name })
		have := map[string]Element{}
		if i >= 0 {
			for _, e := range now.Maps[i].Elements {
				have[e.Key] = e
			}
		}
		added := m
		added.Elements = nil
		for _, e := range m.Elements {
			if old, ok := have[e.Key]; ok && old == e {
				delete(have, e.Key)
				continue
			}
			added.Elements = append(added.Elements, e)
		}
		// An element that leads elsewhere now is removed and added: the kernel
		// does not change one.
		gone := m
		gone.Elements = nil
		for _, e := range now.mapNamed(m.Name).Elements {
			if _, ok := have[e.Key]; ok {
				gone.Elements = append(gone.Elements, e)
			}
		}
		if len(gone.Elements) > 0 {
			d.goneElements = append(d.goneElements, gone)
		}
		d.maps = append(d.maps, added)
	}
}

func (t Table) mapNamed(name string) Map {
	for _, m := range t.Maps {
		if m.Name == name {
			return m
		}
	}
	return Map{}
}

func (r Rule) equal(o Rule) bool {
	if len(r.exprs) == len(o.exprs) && len(r.exprs) > 0 && &r.exprs[0] == &o.exprs[0] {
		return slices.Equal(r.targets, o.targets) // the same rule, not another alike
	}
	return slices.Equal(r.targets, o.targets) && reflect.DeepEqual(r.exprs, o.exprs)
}
