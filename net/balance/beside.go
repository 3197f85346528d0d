// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"errors"
	"hash/fnv"
	"net/netip"
	"sync"

	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/nft"
)

// planBeside is the table that IPVS has beside it. It marks what opens a
// connection to a service for all ports, and drops what would open one to a
// service without live backends.
func planBeside(c Config, services []service) nft.Table {
	t := frame(c)
	base := &t.Chains[0]
	// After connection tracking, and before IPVS.
	base.Hook.Type, base.Hook.Priority = "filter", -150
	base.Rules = []nft.Rule{entry(c).First().Jump(lookups)}
	if c.Where == Output {
		t.Chains = append(t.Chains, toItself())
	}
	by := marks(services)
	for _, s := range services {
		if rules := beside(c.Where, s, by); len(rules) > 0 {
			t.Chains = append(t.Chains, nft.Chain{Name: s.key.String(), Rules: rules})
			add(&t, s.key, s.key.String())
		}
	}
	return t
}

// toItself leads what IPVS has given to an address of the namespace there: IPVS
// leaves the packet on the way that it was on, to the service's address. The kernel
// looks for the way again if a chain of this type has changed the mark.
func toItself() nft.Chain {
	var r nft.Rule
	return nft.Chain{
		Name: "itself", Hook: &nft.Hook{Type: "route", Point: nft.Output, Priority: 0}, // after IPVS
		Rules: []nft.Rule{r.NotOutName("lo").ToLocal().SetMark(turned)},
	}
}

// turned is a mark that no service has.
const turned = 1 << 31

// marks are the marks by which IPVS knows the services for all ports.
func marks(services []service) map[key]uint32 {
	out := map[key]uint32{}
	taken := map[uint32]bool{0: true, turned: true}
	for _, s := range services {
		if s.key.port != 0 {
			continue
		}
		h := fnv.New32a()
		_, _ = h.Write(append(s.key.address.AsSlice(), s.key.proto))
		m := h.Sum32()
		for taken[m] {
			m++
		}
		taken[m], out[s.key] = true, m
	}
	return out
}

func beside(where Where, s service, marks map[key]uint32) (rules []nft.Rule) {
	var r nft.Rule
	mark := marks[s.key]
	if len(s.live) == 0 {
		// What belongs to a connection that was cut off is answered with a reset,
		// here or by the machine itself, whose the service's address is.
		ours := r.Proto(unix.IPPROTO_TCP).NotSYN()
		if where == Forwarded {
			return []nft.Rule{ours.Accept(), r.Drop()}
		}
		return []nft.Rule{ours.Reset(), r.Drop()}
	}
	switch k := s.key; {
	case mark != 0:
		return []nft.Rule{r.SetMark(mark)}
	case marks[key{k.address, k.proto, 0}] != 0, marks[key{k.address, 0, 0}] != 0:
		// It is not to come to the service for all ports of its address.
		return []nft.Rule{r.Accept()}
	}
	return nil
}

// noBeside is why this kernel's packet filter cannot stand beside IPVS, if so.
var noBeside = sync.OnceValue(func() error { //nolint:gochecknoglobals // a property of the kernel
	return link.Apart(func() error {
		conn, err := nft.Open()
		if err != nil {
			return err
		}
		some := []service{{key: key{address: netip.IPv4Unspecified()}}}
		return errors.Join(conn.Replace(planBeside(Config{Table: "probe"}, some)), conn.Close())
	})
})
