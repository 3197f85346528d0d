// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"golang.org/x/sys/unix"

	"skep/net/nft"
)

// The table's maps, from an address, a protocol and a port to a service's
// chain, and the chain that looks them up.
const (
	services4 = "services4"
	services6 = "services6"
	lookups   = "services"
)

// plan is the table that balances the services.
//
// Only the first packet of a connection comes to these rules: connection
// tracking does with the others as was done with it. So a change here is one
// for new connections only.
func plan(c Config, services []service) nft.Table {
	t := frame(c)
	for _, s := range services {
		t.Chains = append(t.Chains, nft.Chain{Name: s.key.String(), Rules: translation(s)})
		add(&t, s.key, s.key.String())
	}
	return t
}

// frame is the table without services.
func frame(c Config) nft.Table {
	hook := nft.Chain{
		Name: "output", Hook: &nft.Hook{Type: "nat", Point: nft.Output, Priority: -100},
		Rules: []nft.Rule{entry(c).Jump(lookups)},
	}
	if c.Where == Forwarded {
		hook.Name, hook.Hook.Point = "prerouting", nft.Prerouting
	}
	return nft.Table{
		Family: nft.Inet, Name: c.Table,
		Maps:   []nft.Map{{Name: services4, Width: nft.WidthIPv4}, {Name: services6, Width: nft.WidthIPv6}},
		Chains: []nft.Chain{hook, {Name: lookups, Rules: lookup(c.Where)}},
	}
}

// entry is a rule for the packets that are balanced.
func entry(c Config) nft.Rule {
	if c.Where == Forwarded && c.Device != "" {
		return nft.Rule{}.IfName(c.Device)
	}
	return nft.Rule{}
}

// lookup finds the service of a packet, by what names it most exactly.
func lookup(where Where) []nft.Rule {
	v4, v6 := nft.Rule{}.Is4(), nft.Rule{}.Is6()
	rules := []nft.Rule{
		v4.ByKey(services4, nft.DestIPv4, nft.Protocol, nft.DestPort),
		v4.ByKey(services4, nft.DestIPv4, nft.Protocol, nft.NoPort),
		v4.ByKey(services4, nft.DestIPv4, nft.NoProtocol, nft.NoPort),
		v6.ByKey(services6, nft.DestIPv6, nft.Protocol, nft.DestPort),
		v6.ByKey(services6, nft.DestIPv6, nft.Protocol, nft.NoPort),
		v6.ByKey(services6, nft.DestIPv6, nft.NoProtocol, nft.NoPort),
	}
	if where == Forwarded {
		rules = append(rules,
			v4.ToLocal().ByKey(services4, nft.NoIPv4, nft.Protocol, nft.DestPort),
			v6.ToLocal().ByKey(services6, nft.NoIPv6, nft.Protocol, nft.DestPort))
	}
	return rules
}

// add leads a key to a chain.
func add(t *nft.Table, k key, chain string) {
	m := &t.Maps[0]
	if k.address.Is6() {
		m = &t.Maps[1]
	}
	m.Elements = append(m.Elements, nft.Element{Key: nft.PortKey(k.address, k.proto, k.port), Chain: chain})
}

// translation is what is done with a new connection to a service.
func translation(s service) []nft.Rule {
	var r nft.Rule
	switch len(s.live) {
	case 0:
	case 1:
		return []nft.Rule{r.Translate(s.live)}
	default:
		// A packet that is in the old rules when they are replaced does not find
		// anything in the old map any more. It would pass untranslated.
		return []nft.Rule{r.Translate(s.live), r.Translate(s.live[:1])}
	}
	return []nft.Rule{
		// What belongs to a connection that was cut off is answered with a reset,
		// by this machine, since no backend is there to do so.
		r.Proto(unix.IPPROTO_TCP).NotSYN().Redirect(),
		r.Drop(),
	}
}
