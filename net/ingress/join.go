// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"

	"skep/net/link"
	"skep/net/nft"
)

// Where a member's answers find their way back into the mesh.
const (
	routes   = 100 // the table of routes
	priority = 100 // of the rule that leads there
)

// member is a container's side of the mesh.
type member struct {
	// turn is held by whoever works on it, or reads what follows.
	turn     chan struct{}
	wants    Member
	identity uint64
	table    table
}

// Join makes a container's side of the mesh: what comes to a wire port goes to
// the port that it listens on, and the answers back into the mesh. Its device
// must be there. It is idempotent, and ends with the container's namespace.
func (m *Mesh) Join(ctx context.Context, w Member) error {
	if !w.Address.Addr().Is4() || !w.Subnet.Addr().Is4() {
		return fmt.Errorf("join the mesh: %s in %s: not of IPv4", w.Address, w.Subnet)
	}
	identity, err := identify(w.Namespace)
	if err != nil {
		return fmt.Errorf("join the mesh: %w", err)
	}
	m.mu.Lock()
	one := m.members[w.Namespace]
	if one == nil || one.identity != identity {
		one = &member{turn: make(chan struct{}, 1), identity: identity}
		m.members[w.Namespace] = one
	}
	m.mu.Unlock()
	select {
	case one.turn <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("join the mesh: %w", context.Cause(ctx))
	}
	defer func() { <-one.turn }()
	one.wants = w
	// What another container had at the path is not this one's.
	one.table = table{want: planMember(w)}
	if _, err := one.settle(one.table.set); err != nil {
		return fmt.Errorf("join the mesh: %w", err)
	}
	return nil
}

// settle makes what is missing in the namespace; the table by the function
// given. It reports whether a route was.
func (one *member) settle(set func(*nft.Conn) error) (changed bool, err error) {
	err = within(one.wants.Namespace, func(c *nft.Conn) (err error) {
		for name, value := range one.wants.sysctls() {
			if err = link.Sysctl(name, value); err != nil {
				return err
			}
		}
		if err = set(c); err != nil {
			return err
		}
		changed, err = link.EnsureSourceRoute(link.SourceRoute{
			Interface: one.wants.Interface, Address: one.wants.Address.Addr(), Subnet: one.wants.Subnet,
			Gateway: one.wants.Gateway, GatewayMAC: gatewayMAC(), Table: routes, Priority: priority,
		})
		return err
	})
	return changed, err
}

func (w Member) sysctls() map[string]string {
	return map[string]string{
		// Clients come by the mesh's device though the way to them is by another.
		"net/ipv4/conf/all/rp_filter":                 "0",
		"net/ipv4/conf/" + w.Interface + "/rp_filter": "0",
		// Older kernels hand a client whose port was changed, because another came
		// with the same, to the connection that has that port.
		"net/ipv4/tcp_early_demux": "0",
	}
}

// mend repairs what is not as it should be. It returns how many things were,
// and whether the member is still there.
func (one *member) mend(ctx context.Context) (repaired int, there bool, err error) {
	select {
	case one.turn <- struct{}{}:
	case <-ctx.Done():
		return 0, true, context.Cause(ctx)
	}
	defer func() { <-one.turn }()
	if identity, gone := identify(one.wants.Namespace); gone != nil || identity != one.identity || !link.Pinned(one.wants.Namespace) {
		return 0, false, nil
	}
	replaced := false
	changed, err := one.settle(func(c *nft.Conn) (err error) {
		replaced, err = one.table.mend(c)
		return err
	})
	for _, did := range []bool{replaced, changed} {
		if did {
			repaired++
		}
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("mend a member of the mesh in %s", one.wants.Namespace), err)
	}
	return repaired, true, err
}

// right reports whether the member's table is as it should be, or its
// namespace has gone.
func (one *member) right(ctx context.Context) (bool, error) {
	select {
	case one.turn <- struct{}{}:
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
	defer func() { <-one.turn }()
	if identity, gone := identify(one.wants.Namespace); gone != nil || identity != one.identity || !link.Pinned(one.wants.Namespace) {
		return true, nil
	}
	same := false
	err := within(one.wants.Namespace, func(c *nft.Conn) (err error) {
		same, err = one.table.same(c)
		return err
	})
	return same, err
}
