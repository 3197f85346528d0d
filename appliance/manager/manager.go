// Package manager runs what only the manager that leads does: the loops that
// turn services into tasks on nodes, and the dispatcher that tells the nodes.
//
// Leading is being inside [Manager.Run]: all loops start with it, the first
// that fails ends it, and none outlives it. The loops share nothing but the
// store. Each looks at everything when it starts, so that whatever a former
// leader left half done is finished.
package manager

import (
	"context"
	"fmt"
	"log/slog"
	"net"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/manager/allocator"
	"skep/appliance/manager/dispatcher"
	"skep/appliance/manager/enforcer"
	"skep/appliance/manager/keys"
	"skep/appliance/manager/orchestrator"
	"skep/appliance/manager/reaper"
	"skep/appliance/manager/roles"
	"skep/appliance/manager/scheduler"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// Config is what a manager needs; all from Replica on may be nil.
type Config struct {
	Store  store.Proposer
	NodeID string // of this manager
	Logger *slog.Logger
	// Replica is the group that this manager is to keep while it leads; nil if
	// somebody else does.
	Replica roles.Replica
	// Holdings takes what nodes say of their images: [dispatcher.Config].
	Holdings func(node string, h *wire.Holdings)
}

// Manager is one manager of the swarm.
type Manager struct {
	cfg        Config
	dispatcher *dispatcher.Dispatcher
}

// New is a manager that does not lead yet.
func New(cfg Config) *Manager {
	return &Manager{
		cfg:        cfg,
		dispatcher: dispatcher.New(dispatcher.Config{Store: cfg.Store, Logger: cfg.Logger, Holdings: cfg.Holdings}),
	}
}

// Run is one term of leadership. It returns when ctx ends or a loop fails, and
// may be called again.
func (m *Manager) Run(ctx context.Context) error {
	if err := m.repair(ctx); err != nil {
		return fmt.Errorf("begin to lead: %w", err)
	}
	loops := []duty{
		{"orchestrator", orchestrator.Run},
		{"allocator", allocator.Run},
		{"scheduler", scheduler.Run},
		{"enforcer", enforcer.Run},
		{"reaper", reaper.Run},
		{"keys", func(ctx context.Context, s store.Proposer) error {
			return keys.Run(ctx, s, m.dispatcher.HaveKeys, m.dispatcher.HaveTunnels)
		}},
		{"dispatcher", func(ctx context.Context, _ store.Proposer) error { return m.dispatcher.Run(ctx) }},
	}
	if m.cfg.Replica != nil {
		loops = append(loops, duty{"roles", m.roles})
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, l := range loops {
		g.Go(func() error {
			if err := l.run(gctx, m.cfg.Store); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
			return nil
		})
	}
	err := g.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// duty is what a leader does for as long as it leads.
type duty struct {
	name string
	run  func(context.Context, store.Proposer) error
}

func (m *Manager) roles(ctx context.Context, s store.Proposer) error {
	return roles.Run(ctx, roles.Config{
		Store: s, NodeID: m.cfg.NodeID, Replica: m.cfg.Replica, Generation: m.dispatcher.Generation, Logger: m.cfg.Logger,
	})
}

// Serve holds a session with a node that the caller has identified.
func (m *Manager) Serve(ctx context.Context, conn net.Conn, node pki.Node) error {
	return m.dispatcher.Serve(ctx, conn, node)
}

// Dial connects an agent in the same process, as that node. It waits a little
// for this manager to lead.
func (m *Manager) Dial(ctx context.Context, node string) (net.Conn, error) {
	return m.dispatcher.Dial(ctx, node)
}

// Connect is a connection to a node's agent, while this manager leads and the
// node has a session. The caller closes it.
func (m *Manager) Connect(ctx context.Context, node string) (net.Conn, error) {
	return m.dispatcher.Connect(ctx, node)
}

// Reach joins conn, on which another manager speaks, to a node's agent until
// both are done.
func (m *Manager) Reach(ctx context.Context, node string, conn net.Conn) error {
	return m.dispatcher.Reach(ctx, node, conn)
}

// Attach hands a stream that a node opened by invitation to who asked for it,
// and returns when that one is done with it.
func (m *Manager) Attach(ctx context.Context, node, stream string, conn net.Conn) error {
	return m.dispatcher.Attach(ctx, node, stream, conn)
}

// Hint says what gossip believes of a node: that it is dead, or not.
func (m *Manager) Hint(node string, dead bool) { m.dispatcher.Hint(node, dead) }

// repair makes sure of what the loops take for granted: that the leader itself
// is a node of the swarm.
func (m *Manager) repair(ctx context.Context) error {
	for {
		snap := m.cfg.Store.Snapshot()
		if _, ok := snap.Nodes.Get(m.cfg.NodeID); ok {
			return nil
		}
		n := &object.Node{CertRole: swarm.NodeRoleManager}
		n.ID = m.cfg.NodeID
		n.Spec.Role, n.Spec.Availability = swarm.NodeRoleManager, swarm.NodeAvailabilityActive
		n.Status.State = swarm.NodeStateUnknown
		tx := store.Begin(snap)
		tx.Create(n)
		if _, err := m.cfg.Store.Propose(ctx, tx); err != nil && !errdefs.IsAlreadyExists(err) {
			return fmt.Errorf("make this node part of the swarm: %w", err)
		}
	}
}
