package membership

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"sync/atomic"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/config"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki/identity"
	"skep/store"
)

// Config is what a membership stands on; all of it is required unless it says
// otherwise.
type Config struct {
	// File is the node file's section.
	File config.Swarm
	// Dir is the node's data directory, where the swarm's state lies.
	Dir      string
	Keys     *identity.Keystore
	Executor agent.Executor
	// Describe is the machine as the swarm is to know it.
	Describe func(swarm.TLSInfo) swarm.NodeDescription
	Links    func() ([]Link, error)
	// Serve answers what managers ask of this node over one connection, which
	// it closes. It may be nil.
	Serve func(ctx context.Context, conn net.Conn) error
	// Holdings tells a session what images the node has; it may be nil.
	Holdings func(ctx context.Context, send func(*wire.Holdings) error) error
	// Held takes what nodes say of their images while this one leads, and nil
	// when a node's session ends. It may be nil.
	Held func(node string, h *wire.Holdings)
	// Networks takes what the node is to know of the networks of its tasks, and nil
	// when it is out of its swarm: then nothing of them is to remain. It must not
	// block. Each view is to be answered by [Membership.Programmed], unless another
	// has come since. It may be nil, and so may Tunnels, which takes the keys of
	// encrypted networks.
	Networks func(v *wire.NetworkView)
	Tunnels  func(t *wire.Tunnels)
	// Boot is another one whenever the kernel has lost the keys of encrypted
	// networks; after a change call [Membership.Refresh]. It may be nil.
	Boot func() string
	// Gossip is told what the node is to do to learn who is alive, whenever that
	// changes: nothing, if there is no Node. It must not block. It may be nil.
	Gossip func(Gossip)
	// Routes are more routes of the control port.
	Routes []control.Route
	// Rekey has the keystore follow the swarm, while the node is a manager with
	// its replica, or a worker with nil. The parts are what is sealed because of
	// the stay; stale is called when the node's key is to be replaced. It may be nil.
	Rekey func(ctx context.Context, s store.Proposer, stale func(), parts ...Sealed) error
	// Fatal is told of a failure after which nothing that waits for the disk is
	// to be waited for: the process is to end.
	Fatal func(error)
	// Beside runs while the node is a manager, with its replica.
	Beside []func(ctx context.Context, s store.Proposer) error
	Logger *slog.Logger
}

// Gossip is what members of a swarm need to tell each other that they are alive.
type Gossip struct {
	Cluster, Node string
	// Nodes are the members, this node too, with their addresses.
	Nodes []wire.Peer
	// Version is that of Keys, of which the first is to be sent with; secret.
	Version uint64
	Keys    [][]byte
}

// Sealed is a part of the node whose files the keyring seals.
type Sealed struct {
	Name string
	// Reseal returns nil when the active key alone seals all of its files. It
	// may be called again at any time.
	Reseal func(context.Context) error
}

// Membership is the node's part in a swarm, if it has one. Run owns it: it is
// either waiting for a swarm, trying to join one, or inside a stay. What others
// ask for reaches it through calls and the stay.
type Membership struct {
	cfg   Config
	calls chan *call
	stay  atomic.Pointer[stay]
	// dialer reaches the managers of the swarm that the node is in. What may be
	// large goes by bulk, over connections of its own: a few streams that nobody
	// reads fill a connection's window, and the session's beats would wait.
	dialer, bulk *control.Dialer
	// trying is the joining that goes on, if any.
	trying atomic.Pointer[attempt]
	// settled closes when the node is what it was before it last stopped: in
	// its swarm, or waiting for one.
	settled chan struct{}
}

// call is a request to become part of a swarm: exactly one of init and join is set.
type call struct {
	init *swarm.InitRequest
	join *joining
	// reply takes the one answer; it is buffered.
	reply chan error
}

func (c *call) answer(err error) {
	select {
	case c.reply <- err:
	default:
	}
}

// New is a membership that does not run yet.
func New(c Config) *Membership {
	m := &Membership{cfg: c, calls: make(chan *call), settled: make(chan struct{})}
	m.dialer, m.bulk = m.newDialer(), m.newDialer()
	return m
}

func (m *Membership) newDialer() *control.Dialer {
	return control.NewDialer(control.DialerConfig{
		Identity: func() *control.Identity {
			if s := m.stay.Load(); s != nil {
				return s.current()
			}
			return &control.Identity{} // which nobody lets in
		},
		Resolve: func(node string) string {
			if s := m.stay.Load(); s != nil {
				return s.resolve(node)
			}
			return ""
		},
		Logger: m.cfg.Logger,
	})
}

// Settled closes when the node is what it was before it last stopped.
func (m *Membership) Settled() <-chan struct{} { return m.settled }

// Run is the node's part in swarms until ctx ends.
func (m *Membership) Run(ctx context.Context) error {
	defer m.dialer.Close()
	defer m.bulk.Close()
	pending, err := m.first()
	if err != nil {
		return err
	}
	if pending == nil && !m.isMember() {
		m.settle()
	}
	for {
		if pending != nil {
			if err := m.enter(ctx, pending); err != nil {
				pending.answer(err)
				pending = nil
			}
		}
		if m.isMember() {
			if err := m.participate(ctx, pending); !errors.Is(err, errLeft) {
				return err
			}
			pending = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case pending = <-m.calls:
		}
	}
}

// Refresh has the managers told what has changed about the node.
func (m *Membership) Refresh() {
	if s := m.stay.Load(); s != nil {
		s.agent.Refresh()
	}
}

// Programmed has the managers told that the node's kernel and DNS are as views and
// tunnels of these versions said. It does not block.
func (m *Membership) Programmed(p wire.Programmed) {
	if s := m.stay.Load(); s != nil {
		s.agent.Programmed(p)
	}
}

func (m *Membership) isMember() bool { return m.cfg.Keys.State().ClusterID != "" }

// first is the node file's init or join, if the node has no state that rules instead.
func (m *Membership) first() (*call, error) {
	st := m.cfg.Keys.State()
	if st.ClusterID != "" || st.Left {
		return nil, nil
	}
	c := &call{reply: make(chan error, 1)}
	switch {
	case m.cfg.File.Init != nil:
		req := initRequest(m.cfg.File)
		if _, err := m.addresses(askedBy(req)); err != nil {
			return nil, err
		}
		c.init = &req
	case m.cfg.File.Join != nil:
		j, err := m.joiningOfFile()
		if err != nil {
			return nil, err
		}
		c.join = j
	default:
		return nil, nil
	}
	return c, nil
}

// enter makes the node a member, on the disk.
func (m *Membership) enter(ctx context.Context, c *call) error {
	if c.init != nil {
		return m.found(*c.init)
	}
	return m.join(ctx, c.join)
}

func (m *Membership) settle() {
	select {
	case <-m.settled:
	default:
		close(m.settled)
	}
}

// dir is a path in the data directory.
func (m *Membership) dir(name string) string { return filepath.Join(m.cfg.Dir, name) }
