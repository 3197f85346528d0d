// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

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

// Inspect compares the kernel with what was asked for, on the node and in the
// members' namespaces, and says what is not right. It changes nothing. It looks
// at tables and devices only: [Mesh.Check] also mends addresses and routes.
func (m *Mesh) Inspect(ctx context.Context) (faults []string, err error) {
	if err = m.take(ctx); err != nil {
		return nil, fmt.Errorf("inspect mesh: %w", err)
	}
	defer m.give()
	if m.state.Namespace == "" {
		return nil, nil
	}
	if identity, gone := identify(m.state.Namespace); gone != nil || m.box == nil || m.box.identity != identity {
		return []string{"the router's namespace is not the mesh's"}, nil
	}
	say := func(fault bool, what string) {
		if fault {
			faults = append(faults, what)
		}
	}
	_, linked, err := m.link.Device(m.device())
	say(!linked, "the router has no leg on the node's bridge")
	published, wrong := m.node.same(m.filter)
	say(!published, "the published ports are not led to the router as they should be")
	err = errors.Join(err, wrong, within(m.box.path, func(c *nft.Conn) error {
		forwards, unseen := m.box.router.same(c)
		say(!forwards, "the router does not forward as it should")
		steers, unknown := m.box.steering.same(c)
		say(!steers, "answers are not led back as they should be")
		return errors.Join(unseen, unknown)
	}))
	n, wrong := m.box.balancer.Inspect(ctx)
	say(n > 0, fmt.Sprintf("the router's balancer is not as it should be (%d differences)", n))
	said, silent := m.inspectMembers(ctx)
	if err = errors.Join(err, wrong, silent); err != nil {
		return nil, fmt.Errorf("inspect mesh: %w", err)
	}
	return append(faults, said...), nil
}

func (m *Mesh) inspectMembers(ctx context.Context) (faults []string, err error) {
	m.mu.Lock()
	all := maps.Clone(m.members)
	m.mu.Unlock()
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(all)) {
		right, err := all[path].right(ctx)
		errs = append(errs, err)
		if !right && err == nil {
			faults = append(faults, "a task's side of the mesh is not as it should be: "+path)
		}
	}
	return faults, errors.Join(errs...)
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
