// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/moby/moby/api/types/network"
	"golang.org/x/sys/unix"

	"skep/net/balance"
	"skep/net/ipam"
	"skep/net/link"
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
	m.done = r
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

// remove takes everything down.
func (m *Mesh) remove(ctx context.Context) error {
	m.done = routing{}
	var errs []error
	if m.node.known || len(m.served) > 0 {
		errs = append(errs, m.publish(nil))
	}
	name := planNode(m.config, nil).Name
	errs = append(errs, m.filter.Delete(nft.IPv4, name), m.leave(ctx), m.link.Remove(m.device()))
	m.node = table{}
	m.reserve(nil)
	m.tell(ctx, nil)
	return errors.Join(errs...)
}

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
	if m.node.settled() {
		return nil
	}
	if err := m.node.set(m.filter); err != nil {
		return err
	}
	next := listens(m.node.now)
	changed := udpPorts(m.served, next)
	m.served = next
	// The kernel remembers who speaks UDP with whom: they are to ask again.
	sandbox := m.config.Sandbox
	if len(changed) == 0 {
		return nil
	}
	return m.link.ForgetFlows(func(f link.Flow) bool {
		return f.Protocol == unix.IPPROTO_UDP && changed[f.Destination.Port()] &&
			(f.Answers.Addr() == sandbox || f.Answers == f.Destination)
	})
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

// enter makes the namespace the mesh's, with the leg to the node's bridge.
func (m *Mesh) enter(ctx context.Context, path string) error {
	identity, err := identify(path)
	if err != nil {
		return err
	}
	if m.box != nil && (m.box.path != path || m.box.identity != identity) {
		if err := m.leave(ctx); err != nil {
			return err
		}
	}
	if m.box != nil {
		return nil
	}
	if _, err := m.connect(path); err != nil {
		return err
	}
	b, err := balance.Open(ctx, balance.Config{
		Namespace: path, Table: meshTable + "-ports", Where: balance.Forwarded, Device: uplink,
		Mode: m.config.Mode, Logger: m.log,
	})
	if err != nil {
		return err
	}
	m.box = &sandbox{path: path, identity: identity, balancer: b}
	return nil
}

// connect makes what is missing of the leg. It reports whether something was.
func (m *Mesh) connect(path string) (bool, error) {
	c := m.config
	// 127.0.0.1 of the node is led to the mesh, too.
	if err := link.Sysctl("net/ipv4/conf/"+c.Bridge+"/route_localnet", "1"); err != nil {
		return false, err
	}
	changed, err := m.link.EnsureLeg(link.Leg{
		Name: m.device(), Bridge: c.Bridge, Peer: uplink, Gateway: c.BridgeGateway, MAC: ipam.MAC(c.Sandbox),
		Address: netip.PrefixFrom(c.Sandbox, c.BridgeSubnet.Bits()),
	}, path)
	if err != nil {
		return changed, err
	}
	return changed, link.Within(path, func() error {
		for _, device := range []string{"all", uplink, fabric} {
			// Clients come by one device and are answered by another.
			if err := link.Sysctl("net/ipv4/conf/"+device+"/rp_filter", "0"); err != nil {
				return err
			}
			if err := link.Sysctl("net/ipv4/conf/"+device+"/send_redirects", "0"); err != nil {
				return err
			}
		}
		return link.Sysctl("net/ipv4/ip_forward", "1")
	})
}

// leave lets go of the namespace, and removes what is the mesh's in it, if it
// is still there.
func (m *Mesh) leave(ctx context.Context) error {
	if m.box == nil {
		return nil
	}
	box := m.box
	m.box = nil
	if identity, gone := identify(box.path); gone != nil || identity != box.identity {
		return box.balancer.Close()
	}
	return errors.Join(
		box.balancer.Destroy(ctx), box.balancer.Close(),
		within(box.path, func(c *nft.Conn) error {
			return errors.Join(c.Delete(nft.Bridge, meshTable), c.Delete(nft.IPv4, meshTable))
		}),
		m.link.Remove(m.device()))
}

// forward makes the router lead the ports to the tasks.
func (m *Mesh) forward(ctx context.Context, s MeshState, r routing) error {
	m.box.router.want = planRouter(m.config, s, r.snat)
	m.box.steering.want = planSteering(s)
	if !m.box.router.settled() || !m.box.steering.settled() {
		err := within(m.box.path, func(c *nft.Conn) error {
			return errors.Join(m.box.steering.set(c), m.box.router.set(c))
		})
		if err != nil {
			return err
		}
	}
	return m.box.balancer.Set(ctx, r.services)
}

// within opens the packet filter of a namespace for f.
func within(path string, f func(*nft.Conn) error) error {
	return link.Within(path, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.Close())
	})
}
