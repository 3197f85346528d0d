// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"regexp"
	"slices"
	"sync"

	"skep/net/balance"
	"skep/net/link"
	"skep/net/nft"
)

// MeshConfig is what a node's part of the routing mesh is made with.
type MeshConfig struct {
	// Scope tells the nodes of one machine apart: six hexadecimal digits.
	Scope string
	// Bridge is the node's own, of which Sandbox is the mesh's address and
	// BridgeGateway the node's.
	Bridge        string
	BridgeSubnet  netip.Prefix
	BridgeGateway netip.Addr
	Sandbox       netip.Addr
	// Ports keeps the published ports from other programs. It may be shared;
	// nil means one of the mesh's own.
	Ports  *Ports
	Mode   balance.Mode
	Logger *slog.Logger
}

// Mesh is a node's part of the routing mesh: it answers on every published port
// for all nodes, and leads connections to tasks wherever they run. It may be
// used by several goroutines. All its verbs act in the network namespace of the
// thread that opened it, and must be called in it.
type Mesh struct {
	config MeshConfig
	log    *slog.Logger
	link   *link.Conn
	filter *nft.Conn
	// turn is held by whoever reads or changes what follows.
	turn chan struct{}
	// state is what was last asked for, done what is done for it.
	state MeshState
	done  routing
	// node is the table in the node's namespace, as it is in the kernel.
	node table
	// served are the ports that the kernel leads to the mesh, and held those
	// that are reserved.
	served map[listen]bool
	held   map[listen]Published
	box    *sandbox // nil while there is no mesh
	// removed: there is nothing of the mesh, not even of an earlier process.
	removed bool

	mu      sync.Mutex
	members map[string]*member // guarded by mu; by namespace
	told    routing            // guarded by mu; what was found out at the last Set or Check
}

// OpenMesh opens the mesh. What an earlier process left goes on working until
// [Mesh.Set], and after it, if nothing has changed.
func OpenMesh(_ context.Context, c MeshConfig) (*Mesh, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("open mesh: %w", err)
	}
	if c.Ports == nil {
		c.Ports = NewPorts()
	}
	m := &Mesh{
		config: c, log: c.Logger, turn: make(chan struct{}, 1),
		held: map[listen]Published{}, members: map[string]*member{},
	}
	if err := m.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open mesh: %w", err), m.Close())
	}
	return m, nil
}

func (c MeshConfig) check() error {
	switch {
	case !regexp.MustCompile(`^[0-9a-f]{6}$`).MatchString(c.Scope):
		return fmt.Errorf("scope %q: not six hexadecimal digits", c.Scope)
	case c.Bridge == "":
		return errors.New("the bridge is missing")
	case !c.BridgeSubnet.Addr().Is4() || !c.BridgeSubnet.Contains(c.Sandbox) || !c.BridgeSubnet.Contains(c.BridgeGateway):
		return fmt.Errorf("%s and %s: not in the bridge's subnet %s", c.Sandbox, c.BridgeGateway, c.BridgeSubnet)
	}
	return nil
}

func (m *Mesh) open() (err error) {
	if m.link, err = link.Open(); err != nil {
		return err
	}
	if m.filter, err = nft.Open(); err != nil {
		return err
	}
	left, _, err := m.filter.Read(nft.IPv4, planNode(m.config, nil).Name)
	if err != nil {
		return err
	}
	m.served = listens(left)
	return nil
}

// listens is the published ports of the node's table.
func listens(node nft.Table) map[listen]bool {
	out := map[listen]bool{}
	for _, s := range node.Maps {
		for _, e := range s.Elements {
			out[listenOfKey(e.Key)] = true
		}
	}
	return out
}

// Close leaves everything in the kernel as it is, but the ports' reservations.
func (m *Mesh) Close() error {
	for _, p := range m.held {
		m.config.Ports.Release(p.ports())
	}
	clear(m.held)
	if m.link != nil {
		m.link.Close()
	}
	var errs []error
	if m.filter != nil {
		errs = append(errs, m.filter.Close())
	}
	if m.box != nil && m.box.balancer != nil {
		errs = append(errs, m.box.balancer.Close())
	}
	return errors.Join(errs...)
}

// Destroy removes everything of the mesh from the node. What is in the members'
// namespaces ends with them; so does what an earlier process left in the
// network's, if there was no Set since.
func (m *Mesh) Destroy(ctx context.Context) error { return m.Set(ctx, MeshState{}) }

// Conflicts are the ports that this node does not answer on, or that it could
// not keep from other programs, in order.
func (m *Mesh) Conflicts() []Conflict {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.told.conflicts)
}

// device is the name of the leg's end on the node's bridge.
func (m *Mesh) device() string { return "skm" + m.config.Scope }

func (m *Mesh) take(ctx context.Context) error {
	select {
	case m.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (m *Mesh) give() { <-m.turn }
