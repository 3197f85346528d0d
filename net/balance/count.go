// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"cmp"
	"context"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"

	"skep/net/nft"
)

// Counter is how many connections a backend has.
type Counter struct {
	Service  netip.AddrPort // the port is 0 for all
	Protocol network.IPProtocol
	Backend  Backend
	// Connections are those that the kernel keeps track of now: open, or not
	// long closed.
	Connections uint64
}

// Counters counts the connections of every backend of what was last set, in
// order of the services. A service for a port of all protocols is one for each.
func (b *Balancer) Counters(ctx context.Context) ([]Counter, error) {
	var out []Counter
	err := b.act(ctx, "count connections", func() (err error) {
		out, err = b.count()
		return err
	})
	return out, err
}

// served is a backend of a service.
type served struct {
	key     key
	backend nft.Target
}

func (b *Balancer) count() ([]Counter, error) {
	n, err := b.kernel.count(b.held)
	if err != nil {
		return nil, err
	}
	var out []Counter
	for _, s := range b.held {
		for _, t := range slices.Concat(s.live, s.draining) {
			out = append(out, Counter{
				Service: netip.AddrPortFrom(s.key.address, s.key.port), Protocol: protocol(s.key.proto),
				Backend:     Backend{Address: t.Address, Port: t.Port, Draining: !slices.Contains(s.live, t)},
				Connections: n[served{s.key, t}],
			})
		}
	}
	slices.SortFunc(out, Counter.compare)
	return out, nil
}

func (c Counter) compare(o Counter) int {
	return cmp.Or(c.Service.Compare(o.Service), cmp.Compare(c.Protocol, o.Protocol),
		c.Backend.Address.Compare(o.Backend.Address), cmp.Compare(c.Backend.Port, o.Backend.Port))
}
