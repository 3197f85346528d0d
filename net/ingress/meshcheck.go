// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"skep/net/nft"
)

// Check compares the kernel with what was asked for, on the node and in the
// members' namespaces, and repairs it. It returns how many things it repaired.
// A published port that another program had is tried again.
func (m *Mesh) Check(ctx context.Context) (repaired int, err error) {
	if err = m.take(ctx); err != nil {
		return 0, fmt.Errorf("check mesh: %w", err)
	}
	defer m.give()
	if m.state.Namespace != "" {
		if repaired, err = m.mend(ctx); err != nil {
			err = fmt.Errorf("check mesh: %w", err)
		}
	}
	of, wrong := m.mendMembers(ctx)
	return repaired + of, errors.Join(err, wrong)
}

func (m *Mesh) mend(ctx context.Context) (repaired int, err error) {
	count := func(changed bool) {
		if changed {
			repaired++
		}
	}
	identity, err := identify(m.state.Namespace)
	if err != nil {
		return 0, err
	}
	if m.box == nil || m.box.identity != identity {
		// Never set, or made anew by who makes networks.
		return 1, m.set(ctx, m.state)
	}
	changed, err := m.connect(m.box.path)
	count(changed)
	if err != nil {
		return repaired, err
	}
	err = within(m.box.path, func(c *nft.Conn) error {
		steered, wrong := m.box.steering.mend(c)
		count(steered)
		routed, bad := m.box.router.mend(c)
		count(routed)
		return errors.Join(wrong, bad)
	})
	if err != nil {
		return repaired, err
	}
	did, err := m.box.balancer.Check(ctx)
	repaired += did
	if err != nil {
		return repaired, err
	}
	changed, err = m.node.mend(m.filter)
	count(changed)
	// What could not be set before, or had, is tried again.
	return repaired, errors.Join(err, m.set(ctx, m.state))
}

func (m *Mesh) mendMembers(ctx context.Context) (repaired int, err error) {
	m.mu.Lock()
	all := maps.Clone(m.members)
	m.mu.Unlock()
	var errs []error
	for path, one := range all {
		did, there, err := one.mend(ctx)
		repaired += did
		errs = append(errs, err)
		if there {
			continue
		}
		m.mu.Lock()
		if m.members[path] == one {
			delete(m.members, path)
		}
		m.mu.Unlock()
	}
	return repaired, errors.Join(errs...)
}
