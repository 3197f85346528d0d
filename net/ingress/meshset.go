// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"

	"skep/net/nft"
)

// Set makes the node's part of the mesh as it is asked for. It is idempotent,
// and costs in proportion to what has changed: another backend of a port is one
// transaction. If it fails it may be called again.
//
// A port that another program of the node has is no error: see [Mesh.Conflicts].
func (m *Mesh) Set(ctx context.Context, s MeshState) error {
	if s.Namespace != "" && (s.Slot < 1 || s.Slot > lastSlot) {
		return fmt.Errorf("set mesh: slot %d: not from 1 to %d", s.Slot, lastSlot)
	}
	if err := m.take(ctx); err != nil {
		return fmt.Errorf("set mesh: %w", err)
	}
	defer m.give()
	if err := m.set(ctx, s); err != nil {
		return fmt.Errorf("set mesh: %w", err)
	}
	return nil
}

// set goes from the inside out where ports are added, and from the outside in
// where they go: what the node leads to the mesh is always served there.
func (m *Mesh) set(ctx context.Context, s MeshState) error {
	m.state = s
	if s.Namespace == "" {
		return m.remove(ctx)
	}
	r := s.route(m.config.Sandbox)
	m.done, m.removed = r, false
	if err := m.publish(m.still(r.published)); err != nil {
		return err
	}
	if err := m.enter(ctx, s.Namespace); err != nil {
		return err
	}
	if err := m.forward(ctx, s, r); err != nil {
		return err
	}
	return m.answer(ctx, r)
}

// remove takes everything down, from the outside in.
func (m *Mesh) remove(ctx context.Context) error {
	if m.removed {
		return nil
	}
	m.done = routing{}
	err := errors.Join(
		m.publish(nil), m.filter.Delete(nft.IPv4, planNode(m.config, nil).Name),
		m.leave(ctx), m.link.Remove(m.device()))
	m.node = table{}
	m.reserve(nil)
	m.tell(ctx, nil)
	m.removed = err == nil
	return err
}
