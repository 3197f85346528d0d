package appliance

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/agent"
	"skep/appliance/manager"
	"skep/exec/tasks"
	"skep/pki"
	"skep/pki/identity"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// session is one stay in a swarm: from the start of its Raft member until the
// process ends or the node leaves.
type session struct {
	id      identity.State
	member  *replica.Member
	manager *manager.Manager
	// end ends the session; ended closes when it has, and left is then what
	// leaving came to.
	end   context.CancelCauseFunc
	ended chan struct{}
	left  error
	// ready closes when the swarm's own object is in the store.
	ready chan struct{}
}

func (s *session) isReady() bool {
	select {
	case <-s.ready:
		return true
	default:
		return false
	}
}

// participate is being a member: it returns errLeft when the node left its
// swarm, nil when ctx ended, and the error that made it impossible to go on.
// The answer to pending is given when the swarm can be used.
func (m *membership) participate(ctx context.Context, pending *call) error {
	member, err := m.openMember()
	if err != nil {
		return err
	}
	sctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &session{id: m.keys.State(), member: member, end: end, ended: make(chan struct{}), ready: make(chan struct{})}
	s.manager = manager.New(manager.Config{Store: member, NodeID: s.id.NodeID, Logger: m.logger})
	m.session.Store(s)
	defer func() {
		m.session.Store(nil)
		close(s.ended)
	}()
	g, gctx := errgroup.WithContext(sctx)
	g.Go(func() error { return member.Run(gctx, func(ctx context.Context) error { return m.lead(ctx, s) }) })
	g.Go(func() error { return m.agent(s).Run(gctx) })
	g.Go(func() error { return m.journal.Watch(gctx, member) })
	g.Go(func() error {
		select {
		case <-s.ready:
			if pending != nil {
				pending.reply <- nil
			}
			m.settle()
		case <-gctx.Done():
			if pending != nil {
				pending.reply <- context.Cause(gctx)
			}
		}
		return nil
	})
	err = g.Wait()
	if errors.Is(context.Cause(sctx), errLeft) && ctx.Err() == nil {
		s.left = m.leave(ctx)
		return errLeft
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (m *membership) settle() {
	select {
	case <-m.settled:
	default:
		close(m.settled)
	}
}

func (m *membership) openMember() (*replica.Member, error) {
	id := m.keys.State()
	member, err := replica.Open(replica.Config{
		Dir:       m.dir.join("raft"),
		ID:        id.RaftID,
		NodeID:    id.NodeID,
		ClusterID: id.ClusterID,
		Keyring:   m.keys.Keyring(),
		Bootstrap: len(id.Founding) > 0,
		Logger:    m.logger,
	})
	if err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	return member, nil
}

// lead is being the leader: it first writes what a new swarm begins with, and
// then runs the manager's loops.
func (m *membership) lead(ctx context.Context, s *session) error {
	if err := m.establish(ctx, s.member); err != nil {
		return fmt.Errorf("establish swarm: %w", err)
	}
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	return s.manager.Run(ctx)
}

// establish writes the founding, if it is not in the store yet. The keystore
// forgets it only after that.
func (m *membership) establish(ctx context.Context, p store.Proposer) error {
	id := m.keys.State()
	if len(id.Founding) == 0 {
		return nil
	}
	snap := p.Snapshot()
	if snap.Cluster() == nil {
		var f founding
		if err := object.Decode(id.Founding, &f); err != nil {
			return err
		}
		tx := store.Begin(snap)
		tx.Create(f.Cluster)
		tx.Create(f.Node)
		if _, err := p.Propose(ctx, tx); err != nil {
			return err
		}
	}
	return m.keys.Update(func(st *identity.State) error {
		st.Founding = nil
		return nil
	})
}

// agent is the worker half of the node. Its manager is in this process, but it
// speaks to it as to any other.
func (m *membership) agent(s *session) *agent.Agent {
	return agent.New(agent.Config{
		NodeID:   s.id.NodeID,
		File:     m.dir.join("tasks"),
		Sealer:   m.keys.Keyring(),
		Executor: executor{m.tasks},
		Dial:     func(ctx context.Context) (net.Conn, error) { return s.manager.Dial(ctx, s.id.NodeID) },
		Logger:   m.logger.With("part", "agent"),
	})
}

// executor is what runs tasks, as the agent knows it.
type executor struct{ *tasks.Executor }

// Controller is the handle of one task.
func (e executor) Controller(a *object.Assignment) (agent.Controller, error) {
	c, err := e.Executor.Controller(a)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// tlsInfo is what other nodes may know of this one's certificate.
func (m *membership) tlsInfo() swarm.TLSInfo {
	st := m.keys.State()
	info := swarm.TLSInfo{TrustRoot: string(st.Roots)}
	if chain, err := pki.ParseChain(st.Certificate); err == nil {
		info.CertIssuerSubject = chain[0].RawIssuer
	}
	if roots, err := pki.ParseChain(st.Roots); err == nil {
		info.CertIssuerPublicKey = roots[0].RawSubjectPublicKeyInfo
	}
	return info
}

// leave removes what the node had of its swarm. The swarm's tasks go with it.
func (m *membership) leave(ctx context.Context) error {
	m.logger.InfoContext(ctx, "leaving the swarm")
	if err := m.tasks.Retain(ctx, nil); err != nil {
		return fmt.Errorf("remove tasks: %w", err)
	}
	return m.forget()
}
