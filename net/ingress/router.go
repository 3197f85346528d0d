// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"skep/net/balance"
	"skep/net/ipam"
	"skep/net/link"
	"skep/net/nft"
)

// sandbox is the ingress network's namespace, in which the router is.
type sandbox struct {
	path     string
	identity uint64 // tells it from one that is at the same path later
	router   table
	steering table
	balancer *balance.Balancer
}

// enter makes the namespace the mesh's, with the leg to the node's bridge.
func (m *Mesh) enter(ctx context.Context, path string) error {
	identity, err := identify(path)
	if err != nil {
		return err
	}
	if m.box != nil && (m.box.path != path || m.box.identity != identity) {
		if err = m.leave(ctx); err != nil {
			return err
		}
	}
	if m.box != nil {
		return nil
	}
	if _, err = m.connect(path); err != nil {
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

// identify tells the namespace that is pinned at path now.
func identify(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Ino, nil
}
