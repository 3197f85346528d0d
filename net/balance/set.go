// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"skep/net/link"
	"skep/net/nft"
)

// Set makes the kernel balance these services and no others. Connections to a
// backend that is no longer among its service's are cut: the client's next
// packet is answered with a reset, or, if it is not of TCP, goes to another.
// With NFT all of it is one transaction.
//
// A service that makes no sense is left out, and named by the error; the others
// are set.
func (b *Balancer) Set(ctx context.Context, services []Service) error {
	next, wrong := check(b.config.Where, services)
	return errors.Join(wrong, b.act(ctx, "balance", func() error { return b.set(ctx, next) }))
}

func (b *Balancer) set(ctx context.Context, next []service) error {
	c := b.compare(next)
	if !c.differs {
		return nil
	}
	// If it fails half-way, the next one does everything.
	b.ready = false
	if err := b.kernel.set(ctx, next); err != nil {
		return err
	}
	if err := c.cut(); err != nil {
		return err
	}
	b.held, b.ready = c.held, true
	return nil
}

// change is what a Set does to what is held.
type change struct {
	differs bool
	held    map[key]service // afterwards
	gone    map[key]service // those that are no longer, without backends
	// stale services may have connections that do not lead to their backends:
	// who lost one, and who is new, since what came before was led elsewhere.
	stale map[key]bool
}

func (b *Balancer) compare(next []service) change {
	c := change{differs: !b.ready, held: make(map[key]service, len(next)), gone: map[key]service{}, stale: map[key]bool{}}
	for _, s := range next {
		c.held[s.key] = s
		old, known := b.held[s.key]
		if !b.ready || !known || s.lacks(old) {
			c.stale[s.key] = true
		}
		c.differs = c.differs || !known || !s.equal(old)
	}
	for k := range b.held {
		if _, ok := c.held[k]; !ok {
			c.gone[k] = service{key: k}
			c.stale[k], c.differs = true, true
		}
	}
	return c
}

// cut makes the kernel forget the connections to stale services that lead to
// none of the service's backends.
func (c change) cut() error {
	if len(c.stale) == 0 {
		return nil
	}
	conn, err := link.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	// The kernel goes through all connections, so it is asked for those of a
	// family only if there may be some.
	families := map[bool]bool{}
	for k := range c.stale {
		families[k.address.Is6()] = true
	}
	for v6 := range families {
		err := conn.ForgetFlowsOf(v6, func(f link.Flow) bool {
			s, ok := c.serving(f)
			return ok && c.stale[s.key] && !s.has(answers(f))
		})
		if err != nil {
			return fmt.Errorf("cut connections: %w", err)
		}
	}
	return nil
}

func (c change) serving(f link.Flow) (service, bool) {
	for _, k := range keysOf(f) {
		if s, ok := c.held[k]; ok {
			return s, true
		}
		if s, ok := c.gone[k]; ok {
			return s, true
		}
	}
	return service{}, false
}

// keysOf lists the keys by which a connection's service is found, in the order
// in which the kernel looks for them.
func keysOf(f link.Flow) []key {
	a, port := f.Destination.Addr(), f.Destination.Port()
	everywhere := netip.IPv4Unspecified()
	if a.Is6() {
		everywhere = netip.IPv6Unspecified()
	}
	return []key{{a, f.Protocol, port}, {a, f.Protocol, 0}, {a, 0, 0}, {everywhere, f.Protocol, port}}
}

// answers is who answers a connection.
func answers(f link.Flow) nft.Target {
	return nft.Target{Address: f.Answers.Addr(), Port: f.Answers.Port()}
}

// Check compares the kernel with what was last set, repairs it, and says how
// much differed. It costs next to nothing while nobody changes anything.
func (b *Balancer) Check(ctx context.Context) (repaired int, err error) {
	err = b.act(ctx, "check balancer", func() error {
		if !b.ready {
			return nil
		}
		repaired, err = b.kernel.check(ctx)
		return err
	})
	return repaired, err
}

// Inspect compares the kernel with what was last set, and says how much differs.
// It changes nothing.
func (b *Balancer) Inspect(ctx context.Context) (differences int, err error) {
	err = b.act(ctx, "inspect balancer", func() error {
		if !b.ready {
			return errors.New("nothing was set yet")
		}
		differences, err = b.kernel.differs()
		return err
	})
	return differences, err
}
