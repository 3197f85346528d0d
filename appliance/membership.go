package appliance

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin/engine"
	"skep/appliance/config"
	"skep/exec/tasks"
	"skep/pki/identity"
	"skep/store"
	"skep/store/object"
)

// errLeft ends a session because the node leaves its swarm.
var errLeft = errors.New("left the swarm")

// membership is the node's part in a swarm, if it has one. Run owns it: it is
// either waiting for an init, or inside a session. What others ask for reaches
// it through calls and the session.
type membership struct {
	cfg   config.Swarm
	dir   *dataDir
	keys  *identity.Keystore
	host  *host
	tasks *tasks.Executor
	// journal takes the swarm's events.
	journal *engine.Journal
	links   func() ([]link, error)
	logger  *slog.Logger

	calls   chan *call
	session atomic.Pointer[session]
	// settled closes when the node is what it was before it last stopped: in
	// its swarm, or waiting for one.
	settled chan struct{}
}

// call is a request to make a swarm.
type call struct {
	req swarm.InitRequest
	// reply takes the one answer; it is buffered.
	reply chan error
}

func (m *membership) Run(ctx context.Context) error {
	pending, err := m.first()
	if err != nil {
		return err
	}
	if pending == nil && m.keys.State().ClusterID == "" {
		close(m.settled)
	}
	for {
		if pending != nil {
			if err := m.found(pending.req); err != nil {
				pending.reply <- err
				pending = nil
			}
		}
		if m.keys.State().ClusterID != "" {
			err := m.participate(ctx, pending)
			if !errors.Is(err, errLeft) {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case pending = <-m.calls:
		}
	}
}

// first is the node file's init, if the node has no state that rules instead.
func (m *membership) first() (*call, error) {
	st := m.keys.State()
	if st.ClusterID != "" || st.Left {
		return nil, nil
	}
	if m.cfg.Join != nil {
		return nil, object.Errorf(errdefs.ErrNotImplemented, "swarm.join: joining a swarm is not built yet")
	}
	if m.cfg.Init == nil {
		return nil, nil
	}
	c := &call{req: initRequest(m.cfg), reply: make(chan error, 1)}
	if err := m.check(c.req); err != nil {
		return nil, err
	}
	return c, nil
}

// check refuses what cannot be founded.
func (m *membership) check(req swarm.InitRequest) error {
	if req.AutoLockManagers {
		return object.Errorf(errdefs.ErrNotImplemented, "autolock is not built yet")
	}
	_, err := m.advertise(req)
	return err
}

func (m *membership) advertise(req swarm.InitRequest) (netip.AddrPort, error) {
	links, err := m.links()
	if err != nil {
		return netip.AddrPort{}, err
	}
	listen, err := resolveListen(req.ListenAddr, links)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return resolveAdvertise(req.AdvertiseAddr, listen, links)
}

// found makes the node the first of a new swarm. From its last write on, the
// node is a member, whatever happens to the process.
func (m *membership) found(req swarm.InitRequest) error {
	if err := m.check(req); err != nil {
		return err
	}
	addr, err := m.advertise(req)
	if err != nil {
		return err
	}
	id, err := found(req, m.host.describe(swarm.TLSInfo{}), addr, time.Now())
	if err != nil {
		return err
	}
	// What an earlier swarm left, or a founding that got no further than this.
	if err := m.wipe(); err != nil {
		return err
	}
	return m.keys.Update(func(s *identity.State) error {
		id.DEKs, id.Locked, id.KEKVersion = s.DEKs, s.Locked, s.KEKVersion
		id.ServerKey, id.ServerCertificate = s.ServerKey, s.ServerCertificate
		*s = id
		return nil
	})
}

// wipe removes the swarm's state from the disk.
func (m *membership) wipe() error {
	for _, name := range []string{"raft", "tasks"} {
		if err := os.RemoveAll(m.dir.join(name)); err != nil {
			return err
		}
	}
	return nil
}

// forget makes the node a member of no swarm, for good.
func (m *membership) forget() error {
	err := m.keys.Update(func(s *identity.State) error {
		*s = identity.State{
			DEKs: s.DEKs, Locked: s.Locked, KEKVersion: s.KEKVersion,
			ServerKey: s.ServerKey, ServerCertificate: s.ServerCertificate, Left: true,
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.wipe()
}

// Init makes the node the first manager of a new swarm and returns its ID.
func (m *membership) Init(ctx context.Context, req swarm.InitRequest) (string, error) {
	if m.session.Load() != nil {
		return "", object.Errorf(errdefs.ErrUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	}
	if err := m.check(req); err != nil {
		return "", err
	}
	c := &call{req: req, reply: make(chan error, 1)}
	select {
	case m.calls <- c:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	select {
	case err := <-c.reply:
		return m.keys.State().NodeID, err
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// Join is refused: swarms of several nodes are not built yet.
func (m *membership) Join(context.Context, swarm.JoinRequest) error {
	return object.Errorf(errdefs.ErrNotImplemented, "joining a swarm is not built yet")
}

// Leave takes the node out of its swarm. It removes the tasks' containers and
// all of the swarm's state.
func (m *membership) Leave(ctx context.Context, force bool) error {
	s := m.session.Load()
	if s == nil {
		return object.Errorf(errdefs.ErrUnavailable, "This node is not part of a swarm")
	}
	if !force {
		return object.Errorf(errdefs.ErrUnavailable, "%s", "You are attempting to leave the swarm on a node that is participating as a manager. "+
			"Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. ")
	}
	s.end(errLeft)
	select {
	case <-s.ended:
		return s.left
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Info is what the node knows of its membership.
func (m *membership) Info(context.Context) swarm.Info {
	s := m.session.Load()
	if s == nil {
		return swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
	}
	info := swarm.Info{NodeID: s.id.NodeID, LocalNodeState: swarm.LocalNodeStatePending}
	if a, err := netip.ParseAddrPort(s.id.Advertise); err == nil {
		info.NodeAddr = a.Addr().String()
	}
	if s.isReady() {
		info.LocalNodeState, info.ControlAvailable = swarm.LocalNodeStateActive, true
		info.RemoteManagers = []swarm.Peer{{NodeID: s.id.NodeID, Addr: s.id.Advertise}}
	}
	return info
}

// Store is the replicated state, as new as any acknowledged write.
func (m *membership) Store(ctx context.Context) (store.Proposer, error) {
	s := m.session.Load()
	if s == nil {
		return nil, errNoSwarm()
	}
	if !s.isReady() {
		return nil, object.Errorf(errdefs.ErrUnavailable, "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.")
	}
	if _, err := s.member.Read(ctx); err != nil {
		return nil, err
	}
	return s.member, nil
}
