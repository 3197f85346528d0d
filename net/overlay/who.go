// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"skep/net/link"
)

// who is the tables of who is where.
type who struct {
	at  map[netip.Addr]link.MAC // neighbours
	via map[link.MAC]netip.Addr // forwards
}

// planWho is the tables of the tunnel's device. It answers for those on this
// node too: so no frame to all needs to leave by another port. Those have the
// last word where addresses clash.
func planWho(n *Network, ends []end) (who, error) {
	w := who{make(map[netip.Addr]link.MAC, len(n.Peers)+len(ends)), make(map[link.MAC]netip.Addr, len(n.Peers))}
	var errs []error
	for i := range n.Peers {
		p := &n.Peers[i]
		if err := p.check(n.Local); err != nil {
			errs = append(errs, err)
			continue
		}
		mac := link.MAC(p.MAC)
		w.via[mac] = p.VTEP
		for _, a := range p.Addresses {
			w.at[a] = mac
		}
	}
	for _, e := range ends {
		for _, p := range e.Addresses {
			w.at[p.Addr()] = link.MAC(e.MAC)
		}
		delete(w.via, link.MAC(e.MAC))
	}
	return w, errors.Join(errs...)
}

// change is what makes next of w.
func (w who) change(next who) (set, drop []link.Entry) {
	for a, mac := range next.at {
		if w.at[a] != mac {
			set = append(set, link.Entry{Table: link.Neighbours, MAC: mac, Address: a})
		}
	}
	for mac, a := range next.via {
		if w.via[mac] != a {
			set = append(set, link.Entry{Table: link.Forwards, MAC: mac, Address: a})
		}
	}
	for a, mac := range w.at {
		if _, ok := next.at[a]; !ok {
			drop = append(drop, link.Entry{Table: link.Neighbours, MAC: mac, Address: a})
		}
	}
	for mac, a := range w.via {
		if _, ok := next.via[mac]; !ok {
			drop = append(drop, link.Entry{Table: link.Forwards, MAC: mac, Address: a})
		}
	}
	return set, drop
}

// keys are addresses and MACs that something has changed of.
type keys struct {
	at  map[netip.Addr]bool
	via map[link.MAC]bool
}

func newKeys() keys { return keys{map[netip.Addr]bool{}, map[link.MAC]bool{}} }

func (k keys) addPeers(peers []Peer) {
	for _, p := range peers {
		if len(p.MAC) == len(link.MAC{}) {
			k.via[link.MAC(p.MAC)] = true
		}
		for _, a := range p.Addresses {
			k.at[a] = true
		}
	}
}

func (k keys) addEnds(ends []end) {
	for _, e := range ends {
		k.via[link.MAC(e.MAC)] = true
		for _, a := range e.Addresses {
			k.at[a.Addr()] = true
		}
	}
}

func (k keys) peer(p *Peer) bool {
	return len(p.MAC) == len(link.MAC{}) && k.via[link.MAC(p.MAC)] ||
		slices.ContainsFunc(p.Addresses, func(a netip.Addr) bool { return k.at[a] })
}

func (k keys) end(e end) bool {
	return k.via[link.MAC(e.MAC)] || slices.ContainsFunc(e.Addresses, func(a netip.Prefix) bool { return k.at[a.Addr()] })
}

// only is what w has of the keys.
func (w who) only(k keys) who {
	out := who{map[netip.Addr]link.MAC{}, map[link.MAC]netip.Addr{}}
	for a := range k.at {
		if mac, ok := w.at[a]; ok {
			out.at[a] = mac
		}
	}
	for mac := range k.via {
		if a, ok := w.via[mac]; ok {
			out.via[mac] = a
		}
	}
	return out
}

// planOnly is planWho of the keys, without making all of it.
func planOnly(n *Network, ends []end, k keys) (who, error) {
	some := n.without()
	for i := range n.Peers {
		if k.peer(&n.Peers[i]) {
			some.Peers = append(some.Peers, n.Peers[i])
		}
	}
	w, err := planWho(some, slices.DeleteFunc(slices.Clone(ends), func(e end) bool { return !k.end(e) }))
	return w.only(k), err
}

// replace puts what has changed of the keys into w.
func (w who) replace(k keys, next who) {
	for a := range k.at {
		delete(w.at, a)
	}
	for mac := range k.via {
		delete(w.via, mac)
	}
	maps.Copy(w.at, next.at)
	maps.Copy(w.via, next.via)
}

// changedPeers are the keys of those peers that are not in the same place of
// both lists, counted from the beginning or from the end. It is false if there
// are so many that nothing is won.
func changedPeers(was, is []Peer) (keys, bool) {
	for len(was) > 0 && len(is) > 0 && was[0].equal(&is[0]) {
		was, is = was[1:], is[1:]
	}
	for len(was) > 0 && len(is) > 0 && was[len(was)-1].equal(&is[len(is)-1]) {
		was, is = was[:len(was)-1], is[:len(is)-1]
	}
	const most = 1000
	if len(was)+len(is) > most {
		return keys{}, false
	}
	k := newKeys()
	k.addPeers(was)
	k.addPeers(is)
	return k, true
}

func (p *Peer) equal(o *Peer) bool {
	return p.VTEP == o.VTEP && bytes.Equal(p.MAC, o.MAC) && slices.Equal(p.Addresses, o.Addresses)
}
