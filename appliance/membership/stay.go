package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/agent"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/pki/identity"
)

var (
	// errLeft ends a stay because the node leaves its swarm.
	errLeft = errors.New("left the swarm")
	// errForced ends a stay because the swarm is to be founded anew from what
	// this node has of it.
	errForced = errors.New("the swarm is recovered by force")
	// errExpelled ends a stay because the node was removed from its swarm.
	errExpelled = errors.New("removed from the swarm")
)

// stay is one stay in a swarm: from the start of the process, or from the
// joining, until the process ends or the node leaves.
type stay struct {
	*Membership
	cluster, node string
	identity      current[*control.Identity]
	peers         *peers
	agent         *agent.Agent
	// half is the manager's part, while the node is one.
	half atomic.Pointer[half]
	// renewal is asked for through this; size 1.
	renewal chan struct{}
	// denied counts refusals since the last welcome.
	denied atomic.Int32
	// problem is why the node is not what it should be, if it is known.
	problem current[error]

	// welcome closes when a manager, or this node's own store, takes it for a member.
	welcome  chan struct{}
	welcomed sync.Once

	mu   sync.Mutex
	conn net.Conn // guarded by mu: the session, if there is one

	gossip Gossip // owned by what passes on what managers say

	// end ends the stay for a reason: at most one is needed. ended closes when
	// it has ended, and left is then what leaving came to.
	end   chan error
	ended chan struct{}
	left  error
}

// finish has the stay end for a reason, if it does not end already.
func (s *stay) finish(why error) {
	select {
	case s.end <- why:
	default:
	}
}

// participate is being a member: it returns errLeft when the node left its
// swarm, nil when ctx ended, and the error that made it impossible to go on.
// pending is answered when the node is a member that others know.
func (m *Membership) participate(ctx context.Context, pending *call) error {
	for {
		err := m.stayOnce(ctx, pending)
		if !errors.Is(err, errForced) {
			return err
		}
		pending = nil
	}
}

func (m *Membership) stayOnce(ctx context.Context, pending *call) error {
	s, err := m.newStay()
	if err != nil {
		return err
	}
	m.stay.Store(s)
	defer func() {
		m.stay.Store(nil)
		if m.cfg.Gossip != nil {
			m.cfg.Gossip(Gossip{})
		}
		close(s.ended)
	}()
	err = s.run(ctx, pending)
	if errors.Is(err, errExpelled) && ctx.Err() == nil {
		// Nothing of the swarm runs on here. The rest waits for the user.
		s.gossip.Node = ""
		s.tellGossip()
		if left := m.cfg.Executor.Retain(ctx, nil); left != nil {
			m.cfg.Logger.ErrorContext(ctx, "could not remove the tasks of a swarm that the node was removed from", "err", left)
		}
		m.noNetworks()
		select {
		case err = <-s.end:
		case <-ctx.Done():
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.Is(err, errLeft):
		s.left = m.leave(ctx)
		return errLeft
	case errors.Is(err, errForced):
		if s.left = m.recover(ctx, err); s.left != nil {
			m.cfg.Logger.ErrorContext(ctx, "could not recover the swarm by force", "err", s.left)
		}
		return errForced
	}
	return err
}

// run is the stay until ctx ends or it is to end for a reason, which is the error.
func (s *stay) run(ctx context.Context, pending *call) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.agent.Run(gctx) })
	g.Go(func() error { return s.manage(gctx) })
	g.Go(func() error { return s.renew(gctx) })
	g.Go(func() error { return s.awaitWelcome(gctx, pending) })
	g.Go(func() error {
		select {
		case why := <-s.end:
			return why
		case <-gctx.Done():
			return nil
		}
	})
	return g.Wait()
}

func (m *Membership) newStay() (*stay, error) {
	st := m.cfg.Keys.State()
	s := &stay{
		Membership: m, cluster: st.ClusterID, node: st.NodeID,
		peers:   &peers{all: st.Peers},
		renewal: make(chan struct{}, 1),
		welcome: make(chan struct{}),
		gossip:  Gossip{Cluster: st.ClusterID, Node: st.NodeID},
		end:     make(chan error, 1),
		ended:   make(chan struct{}),
	}
	s.agent = s.newAgent()
	return s, s.adopt()
}

// adopt takes the keystore's certificate for the node's own.
func (s *stay) adopt() error {
	st := s.cfg.Keys.State()
	cert, roots, err := st.TLS()
	if err != nil {
		return err
	}
	s.identity.set(&control.Identity{Certificate: cert, Roots: roots, Cluster: st.ClusterID, NodeID: st.NodeID, Epoch: st.Epoch})
	s.agent.Refresh() // whoever changes the root waits to hear of it
	return nil
}

func (s *stay) current() *control.Identity {
	id, _ := s.identity.get()
	return id
}

// subject is what the node's certificate says of it.
func (s *stay) subject() (pki.Node, error) { return subjectOf(s.current().Certificate) }

func subjectOf(cert tls.Certificate) (pki.Node, error) {
	if cert.Leaf == nil {
		return pki.Node{}, identity.ErrNoCertificate
	}
	return pki.Subject(cert.Leaf)
}

// isManager tells whether the node's certificate is a manager's.
func (s *stay) isManager() bool {
	n, err := s.subject()
	return err == nil && n.Role == pki.Manager
}

// resolve is where a manager is reached.
func (s *stay) resolve(node string) string {
	if h := s.half.Load(); h != nil {
		if n, ok := h.member.Snapshot().Nodes.Get(node); ok && n.ManagerStatus != nil && n.ManagerStatus.Addr != "" {
			return n.ManagerStatus.Addr
		}
	}
	return s.peers.addr(node)
}

// welcomeHere says that the node is in its swarm.
func (s *stay) welcomeHere() { s.welcomed.Do(func() { close(s.welcome) }) }

// awaitWelcome answers who asked for the swarm, and settles. A worker that
// starts again does its work whether it finds a manager or not.
func (s *stay) awaitWelcome(ctx context.Context, pending *call) error {
	if pending == nil && !s.isManager() {
		s.settle()
	}
	select {
	case <-s.welcome:
		if pending != nil {
			pending.answer(nil)
		}
		s.settle()
	case <-ctx.Done():
		if pending != nil {
			pending.answer(context.Cause(ctx))
		}
	}
	return nil
}

// newAgent is the worker half of the node.
func (s *stay) newAgent() *agent.Agent {
	c := agent.Config{
		NodeID:       s.node,
		File:         s.dir("tasks"),
		NetworksFile: s.dir("networks"),
		Sealer:       s.cfg.Keys.Keyring(),
		Executor:     s.cfg.Executor,
		Dial:         s.dial,
		Swarm:        s.toldOfSwarm,
		Nodes:        s.toldOfNodes,
		Networks:     s.cfg.Networks,
		Tunnels:      s.cfg.Tunnels,
		Boot:         s.cfg.Boot,
		Member:       s.asMember,
		DataPath:     s.dataPath,
		Refused:      func(_ context.Context, err error) { s.refused(err) },
		Holdings:     s.cfg.Holdings,
		Logger:       s.cfg.Logger.With("part", "agent"),
	}
	if s.cfg.Serve != nil {
		c.Invited = s.invited
	}
	return agent.New(c)
}

// dial connects the agent to the manager that leads, in this process or not.
func (s *stay) dial(ctx context.Context) (net.Conn, error) {
	conn, err := s.dialLeader(ctx)
	if err != nil {
		s.refused(err)
		if control.Rejected(err) {
			s.askRenewal() // which enrols the node again, if it can
		}
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
	return conn, nil
}

func (s *stay) dialLeader(ctx context.Context) (net.Conn, error) {
	if h := s.half.Load(); h != nil {
		if h.awaitLeader(ctx) == s.node {
			return h.manager.Dial(ctx, s.node)
		}
	}
	s.peers.doubt() // or this session would not be needed
	return onLeader(ctx, s.peers, func(ctx context.Context, to wire.Peer) (net.Conn, error) {
		return s.dialer.Stream(ctx, to, "/session")
	})
}

// denials is how often in a row a node is refused before it says so: a manager
// that has just started does not know it yet.
const denials = 5

// refused takes in why a manager does not want this node.
func (s *stay) refused(err error) {
	if !errdefs.IsPermissionDenied(err) {
		return
	}
	final := errors.Is(err, wire.ErrExpelled) || errors.Is(err, wire.ErrSuperseded)
	if s.denied.Add(1) >= denials || final {
		s.problem.set(err)
	}
	if errors.Is(err, wire.ErrExpelled) {
		s.finish(errExpelled)
	}
}

// reconnect makes the agent introduce the node anew.
func (s *stay) reconnect() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close()
		s.conn = nil
	}
}

// toldOfSwarm takes in what the manager says of the swarm.
func (s *stay) toldOfSwarm(_ context.Context, told wire.Swarm) error {
	s.denied.Store(0)
	if old, _ := s.problem.get(); old != nil && !errors.Is(old, wire.ErrSuperseded) {
		s.problem.set(nil)
	}
	changed := len(told.Managers) > 0 && s.peers.set(told.Managers)
	if st := s.cfg.Keys.State(); changed || told.Epoch > st.Epoch || (len(told.Roots) > 0 && !slices.Equal(told.Roots, st.Roots)) {
		if err := s.keep(told); err != nil {
			return err
		}
	}
	if s.mustRenew(told) {
		s.askRenewal()
	}
	if len(told.GossipKeys) > 0 && (told.GossipVersion != s.gossip.Version || len(s.gossip.Keys) == 0) {
		s.gossip.Version, s.gossip.Keys = told.GossipVersion, told.GossipKeys
		s.tellGossip()
	}
	if !s.isManager() {
		s.welcomeHere()
	}
	return nil
}

// toldOfNodes takes in where the nodes of the swarm are.
func (s *stay) toldOfNodes(all []wire.Peer) {
	s.gossip.Nodes = all
	s.tellGossip()
}

func (s *stay) tellGossip() {
	if s.cfg.Gossip != nil {
		s.cfg.Gossip(s.gossip)
	}
}

// Hint takes what gossip believes of a node. It counts while this node leads, or
// misses the one that does.
func (m *Membership) Hint(node string, dead bool) {
	s := m.stay.Load()
	if s == nil {
		return
	}
	if h := s.half.Load(); h != nil {
		h.manager.Hint(node, dead)
	}
	if !dead && s.peers.addr(node) != "" {
		s.agent.Hurry()
	}
}

// keep writes down what the node needs to find its swarm again.
func (s *stay) keep(told wire.Swarm) error {
	err := s.cfg.Keys.Update(func(st *identity.State) error {
		if len(told.Managers) > 0 {
			st.Peers = told.Managers
		}
		// A manager of an earlier epoch is not part of this one.
		if st.RaftID == "" {
			st.Epoch = max(st.Epoch, told.Epoch)
		}
		if len(told.Roots) > 0 {
			if _, err := pki.ParseChain(told.Roots); err != nil {
				return fmt.Errorf("roots from the manager: %w", err)
			}
			st.Roots = told.Roots
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.adopt()
}

// mustRenew tells whether the certificate is not what the manager wants it to be.
func (s *stay) mustRenew(told wire.Swarm) bool {
	n, err := s.subject()
	if err != nil {
		return true
	}
	return n.Generation < told.Renew || (told.Role != "" && (n.Role == pki.Manager) != (told.Role == swarm.NodeRoleManager))
}

func (s *stay) askRenewal() {
	select {
	case s.renewal <- struct{}{}:
	default:
	}
}

// invited opens the stream that a manager asks for, and serves it.
func (s *stay) invited(ctx context.Context, stream string) {
	conn, err := s.openStream(ctx, stream)
	if err == nil {
		err = s.cfg.Serve(ctx, conn)
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Logger.DebugContext(ctx, "could not serve a manager", "stream", stream, "err", err)
	}
}

func (s *stay) openStream(ctx context.Context, stream string) (net.Conn, error) {
	h := s.half.Load()
	if h == nil || !h.member.Leading() {
		return onLeader(ctx, s.peers, func(ctx context.Context, to wire.Peer) (net.Conn, error) {
			return s.bulk.Stream(ctx, to, "/streams/"+stream)
		})
	}
	here, there := net.Pipe()
	go func() { // ends with the stream
		if err := h.manager.Attach(ctx, s.node, stream, there); err != nil {
			_ = there.Close()
		}
	}()
	return here, nil
}

// dataPath is where the traffic between containers of this node and of others goes.
func (s *stay) dataPath(ctx context.Context) string {
	a, err := s.present(ctx, s.cfg.Keys.State())
	if err != nil {
		s.cfg.Logger.WarnContext(ctx, "no data path address", "err", err)
		return ""
	}
	return a.dataPath.String()
}

// asMember is how the node is reached as a replica, while it is one.
func (s *stay) asMember() *wire.Member {
	h := s.half.Load()
	if h == nil {
		return nil
	}
	return &wire.Member{RaftID: h.raftID, Addr: h.advertise}
}
