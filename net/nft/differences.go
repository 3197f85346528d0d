// SPDX-License-Identifier: Apache-2.0

package nft

// Differences counts the chains and the elements of maps that are in one table
// only, or not the same in both.
func (t Table) Differences(o Table) int {
	mine, theirs := t.pieces(), o.pieces()
	n := 0
	for name, text := range mine {
		if theirs[name] != text {
			n++
		}
	}
	for name := range theirs {
		if _, ok := mine[name]; !ok {
			n++
		}
	}
	return n
}

// pieces is the table's text in pieces that are in no order.
func (t Table) pieces() map[string]string {
	out := map[string]string{}
	for _, c := range t.Chains {
		out["chain "+c.Name] = c.text()
	}
	for _, m := range t.Maps {
		out["map "+m.Name] = ""
		if m.Timeout > 0 {
			continue // packets put there what they like
		}
		for _, e := range m.Elements {
			out["map "+m.Name+" "+e.Key] = e.Chain + e.Value
		}
	}
	return out
}
