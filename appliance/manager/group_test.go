package manager_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"github.com/rogpeppe/go-internal/testscript"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// group is the list of replicas, without the replicas: the machines that are on
// answer, and have all there is.
type group struct {
	world *world

	mu      sync.Mutex
	members []replica.Server // guarded by mu
}

func (g *group) Members() []replica.Server {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.members)
}

func (g *group) Contacts() map[string]replica.Contact {
	out := map[string]replica.Contact{}
	for _, s := range g.Members() {
		m := g.world.machines[s.NodeID]
		if m == nil {
			continue
		}
		m.mu.Lock()
		c := replica.Contact{Last: m.off}
		m.mu.Unlock()
		if c.Last.IsZero() {
			c.Last = time.Now()
		}
		out[s.NodeID] = c
	}
	return out
}

func (g *group) set(id, node string, voter bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = slices.DeleteFunc(g.members, func(s replica.Server) bool { return s.ID == id })
	g.members = append(g.members, replica.Server{ID: id, NodeID: node, Voter: voter})
	return nil
}

func (g *group) AddNonvoter(_ context.Context, id, node string) error {
	return g.set(id, node, false)
}

func (g *group) AddVoter(_ context.Context, id, node string) error { return g.set(id, node, true) }

func (g *group) DemoteVoter(_ context.Context, id string) error {
	for _, s := range g.Members() {
		if s.ID == id {
			return g.set(id, s.NodeID, false)
		}
	}
	return nil
}

func (g *group) Remove(_ context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = slices.DeleteFunc(g.members, func(s replica.Server) bool { return s.ID == id })
	return nil
}

func (g *group) Transfer(context.Context, string) error { return errors.New("m is the leader") }

// told makes the machine what the swarm says: it gets the certificate of its
// role, becomes a replica or none, and begins a new session.
func (m *machine) told(_ context.Context, s wire.Swarm) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.role = cmp.Or(m.role, swarm.NodeRoleWorker)
	if s.Role == m.role && s.Renew <= m.generation {
		return nil
	}
	snap := m.world.store.Snapshot()
	n, _ := snap.Nodes.Get(m.name)
	n = n.Clone().(*object.Node)
	n.CertRole, n.Generation = s.Role, snap.Index+1
	tx := store.Begin(snap)
	tx.Update(n)
	if _, err := m.world.store.Propose(m.world.t.Context(), tx); err != nil {
		return err
	}
	if s.Role != m.role {
		m.member = nil
		if s.Role == swarm.NodeRoleManager {
			m.stints++
			m.member = &wire.Member{RaftID: fmt.Sprintf("%s-%d", m.name, m.stints), Addr: m.name + ":2377"}
		}
	}
	m.role, m.generation = s.Role, n.Generation
	return m.conn.Close()
}

func (m *machine) asMember() *wire.Member {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.member
}

// dial begins a session as the node that the machine's certificate says it is.
func (m *machine) dial(ctx context.Context) (net.Conn, error) {
	m.mu.Lock()
	who := pki.Node{ID: m.name, Generation: m.generation}
	m.mu.Unlock()
	var here net.Conn
	if who.Generation == 0 {
		var err error
		if here, err = m.world.manager.Dial(ctx, m.name); err != nil { // as in the manager's process
			return nil, err
		}
	} else {
		var there net.Conn
		here, there = net.Pipe()
		// It ends with the connection, which outlives the attempt to make it.
		go func() { _ = m.world.manager.Serve(context.WithoutCancel(ctx), there, who) }()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = here
	return here, nil
}

// cmdRole promotes or demotes a node.
func (w *world) cmdRole(ts *testscript.TestScript, args []string) {
	w.edit(ts, args[0], func(n *object.Node) { n.Spec.Role = swarm.NodeRole(args[1]) })
}

// cmdHint says what gossip believes: hint NODE dead|alive.
func (w *world) cmdHint(_ *testscript.TestScript, args []string) {
	w.manager.Hint(args[0], args[1] == "dead")
	synctest.Wait()
}

// cmdManagers prints who is a manager, and the replicas.
func (w *world) cmdManagers(ts *testscript.TestScript, _ []string) {
	members := w.group.Members()
	for n := range w.store.Snapshot().Nodes.All() {
		text := n.ID + " " + string(n.Spec.Role)
		if s := n.ManagerStatus; s != nil && s.Leader {
			text += " leader"
		} else if s != nil {
			text += " " + string(s.Reachability)
		}
		for _, s := range members {
			if s.NodeID != n.ID {
				continue
			}
			text += " " + s.ID
			if s.Voter {
				text += " votes"
			}
		}
		members = slices.DeleteFunc(members, func(s replica.Server) bool { return s.NodeID == n.ID })
		if m := w.machines[n.ID]; m != nil && m.role == swarm.NodeRoleManager {
			text += ", believes it"
		}
		fmt.Fprintln(ts.Stdout(), text)
	}
	for _, s := range members {
		fmt.Fprintln(ts.Stdout(), s.ID, "of nobody")
	}
}
