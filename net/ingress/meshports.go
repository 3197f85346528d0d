// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"maps"
	"slices"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/link"
)

// still are those published ports that already lead to the mesh.
func (m *Mesh) still(published []Published) []Published {
	return slices.DeleteFunc(slices.Clone(published), func(p Published) bool { return !m.served[p.listen()] })
}

// answer leads the ports to the mesh that can be had.
func (m *Mesh) answer(ctx context.Context, r routing) error {
	conflicts := m.reserve(r.published)
	m.tell(ctx, conflicts)
	serve := slices.DeleteFunc(slices.Clone(r.published), func(p Published) bool {
		_, held := m.held[p.listen()]
		// One that was ours before stays so: its connections go on.
		return !held && !m.served[p.listen()]
	})
	return m.publish(serve)
}

// reserve keeps these ports from other programs, and no others. It returns
// those that another has.
func (m *Mesh) reserve(published []Published) []Conflict {
	gone := maps.Clone(m.held)
	var conflicts []Conflict
	for _, p := range published {
		if _, ok := m.held[p.listen()]; ok {
			delete(gone, p.listen())
			continue
		}
		if _, err := m.config.Ports.Take(p.ports()); err != nil {
			conflicts = append(conflicts, p.conflict("%v", err))
			continue
		}
		m.held[p.listen()] = p
	}
	for l, p := range gone {
		delete(m.held, l)
		m.config.Ports.Release(p.ports())
	}
	return conflicts
}

// tell makes known what is not as users might expect.
func (m *Mesh) tell(ctx context.Context, conflicts []Conflict) {
	told := routing{fallbacks: m.done.fallbacks, conflicts: slices.Concat(m.done.conflicts, conflicts)}
	m.mu.Lock()
	before := m.told
	m.told = told
	m.mu.Unlock()
	for _, c := range told.conflicts {
		if !slices.Contains(before.conflicts, c) {
			m.log.WarnContext(ctx, "could not keep a published port", "service", c.Service, "port", c.Port, "protocol", c.Protocol, "err", c.Reason)
		}
	}
	for service, reason := range told.fallbacks {
		if before.fallbacks[service] != reason {
			m.log.WarnContext(ctx, "could not keep the addresses of a service's clients", "service", service, "err", reason)
		}
	}
}

// publish makes the node lead these ports to the mesh.
func (m *Mesh) publish(published []Published) error {
	m.node.want = planNode(m.config, published)
	if err := m.node.set(m.filter); err != nil {
		return err
	}
	next := listens(m.node.now)
	if changed := udpPorts(m.served, next); len(changed) > 0 {
		// The kernel remembers who speaks UDP with whom: they are to ask again.
		err := m.link.ForgetFlows(func(f link.Flow) bool {
			return f.Protocol == unix.IPPROTO_UDP && changed[f.Destination.Port()] &&
				(f.Answers.Addr() == m.config.Sandbox || f.Answers == f.Destination)
		})
		if err != nil {
			return err
		}
	}
	m.served = next
	return nil
}

// udpPorts are those of UDP that only one has.
func udpPorts(x, y map[listen]bool) map[uint16]bool {
	out := map[uint16]bool{}
	for _, pair := range [][2]map[listen]bool{{x, y}, {y, x}} {
		for l := range pair[0] {
			if l.proto == network.UDP && !pair[1][l] {
				out[l.port] = true
			}
		}
	}
	return out
}
