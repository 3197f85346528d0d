package membership

import (
	"context"
	"net"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/store/object"
)

// NodeID is the node's ID in its swarm, "" if it is in none.
func (m *Membership) NodeID() string {
	if s := m.stay.Load(); s != nil {
		return s.node
	}
	return ""
}

// Dialer reaches the managers of the swarm that the node is in, beside its session.
func (m *Membership) Dialer() *control.Dialer { return m.bulk }

// Leader is the manager to ask first; it may know a better one. The error is of
// the kind not found while the node is in no swarm.
func (m *Membership) Leader() (wire.Peer, error) {
	s := m.stay.Load()
	if s == nil {
		return wire.Peer{}, object.Errorf(errdefs.ErrNotFound, "This node is not part of a swarm")
	}
	if h := s.half.Load(); h != nil {
		if leader := h.member.Leader(); leader != "" {
			return s.peer(leader), nil
		}
	}
	for _, p := range s.peers.inOrder() {
		return p, nil
	}
	return wire.Peer{}, object.Errorf(errdefs.ErrUnavailable, "no manager of the swarm is known")
}

// Leading is nil while this node leads its swarm, and else [control.NotLeader].
func (m *Membership) Leading() error {
	h, err := m.manager()
	if err != nil {
		return err
	}
	return h.leads()
}

// IsManager reports whether a node is a manager, as far as this one knows.
func (m *Membership) IsManager(node string) bool {
	s, err := m.Replica()
	if err != nil {
		return false
	}
	n, ok := s.Nodes.Get(node)
	return ok && n.ManagerStatus != nil
}

// Expected is how many nodes are not known to be down, as far as this one knows.
func (m *Membership) Expected() (n int) {
	s, err := m.Replica()
	if err != nil {
		return 0
	}
	for node := range s.Nodes.All() {
		if node.Status.State != swarm.NodeStateDown {
			n++
		}
	}
	return n
}

// Connect is a connection to what another node serves to managers
// (Config.Serve); only managers have it. The caller closes it.
func (m *Membership) Connect(ctx context.Context, node string) (net.Conn, error) {
	h, err := m.manager()
	if err != nil {
		return nil, err
	}
	if h.member.Leading() {
		return h.manager.Connect(ctx, node)
	}
	return onLeader(ctx, h.peers, func(ctx context.Context, to wire.Peer) (net.Conn, error) {
		return h.bulk.Stream(ctx, to, "/nodes/"+node+"/connect")
	})
}
