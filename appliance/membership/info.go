package membership

import (
	"context"
	"errors"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// joinWait is how long a request to join waits for its end.
const joinWait = 20 * time.Second

// Init makes the node the first manager of a new swarm and returns its ID.
// With ForceNewCluster a manager goes on alone with what it has of its swarm.
func (m *Membership) Init(ctx context.Context, req swarm.InitRequest) (string, error) {
	if s := m.stay.Load(); s != nil && req.ForceNewCluster {
		return s.node, m.force(ctx, s, askedBy(req))
	}
	if err := m.free(); err != nil {
		return "", err
	}
	if _, err := m.addresses(askedBy(req)); err != nil {
		return "", err
	}
	if err := m.ask(ctx, &call{init: &req, reply: make(chan error, 1)}); err != nil {
		return "", err
	}
	return m.cfg.Keys.State().NodeID, nil
}

// free is an error while the node is in a swarm, or on its way into one.
func (m *Membership) free() error {
	if m.stay.Load() != nil || m.trying.Load() != nil {
		return object.Errorf(errdefs.ErrUnavailable, `This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	}
	return nil
}

func (m *Membership) ask(ctx context.Context, c *call) error {
	select {
	case m.calls <- c:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	select {
	case err := <-c.reply:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Join makes the node a member of the swarm that the token is of.
func (m *Membership) Join(ctx context.Context, req swarm.JoinRequest) error {
	if err := m.free(); err != nil {
		return err
	}
	j, err := m.joiningOf(req)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinWait)
	defer cancel()
	err = m.ask(ctx, &call{join: j, reply: make(chan error, 1)})
	if errors.Is(err, context.DeadlineExceeded) {
		return object.Errorf(errdefs.ErrUnavailable, "%s", `Timeout was reached before node joined. The attempt to join the swarm will continue in the background. Use the "docker info" command to see the current swarm status of your node.`)
	}
	return err
}

// force ends the stay and begins another, of this manager alone.
func (m *Membership) force(ctx context.Context, s *stay, as asked) error {
	if s.half.Load() == nil {
		return object.Errorf(errdefs.ErrUnavailable, "This node is not a swarm manager. A swarm can be recovered only from what a manager has of it.")
	}
	if _, err := m.addresses(as); err != nil {
		return err
	}
	if as.listen == usualListen {
		as.listen = ""
	}
	s.finish(&forced{as})
	select {
	case <-s.ended:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if s.left != nil {
		return s.left
	}
	next := m.stay.Load()
	for ; next == nil; next = m.stay.Load() {
		if err := pause(ctx, minRetry); err != nil {
			return err
		}
	}
	select {
	case <-next.welcome:
		return nil
	case <-next.ended:
		return object.Errorf(errdefs.ErrUnavailable, "the node stopped")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Info is what the node knows of its membership.
func (m *Membership) Info(context.Context) swarm.Info {
	s := m.stay.Load()
	if s == nil {
		info := swarm.Info{LocalNodeState: swarm.LocalNodeStateInactive}
		if a := m.trying.Load(); a != nil {
			info.LocalNodeState = swarm.LocalNodeStatePending
			if err, _ := a.problem.get(); err != nil {
				info.Error = err.Error()
			}
		}
		return info
	}
	st := m.cfg.Keys.State()
	info := swarm.Info{NodeID: s.node, LocalNodeState: swarm.LocalNodeStatePending}
	if a, err := netip.ParseAddrPort(st.Advertise); err == nil {
		info.NodeAddr = a.Addr().String()
	}
	for _, p := range s.peers.list() {
		info.RemoteManagers = append(info.RemoteManagers, swarm.Peer{NodeID: p.NodeID, Addr: p.Addr})
	}
	select {
	case <-s.welcome:
		info.LocalNodeState = swarm.LocalNodeStateActive
	default:
	}
	if h := s.half.Load(); h != nil && h.isReady() {
		info.LocalNodeState, info.ControlAvailable = swarm.LocalNodeStateActive, true
	}
	if err, _ := s.problem.get(); err != nil {
		info.LocalNodeState, info.Error = swarm.LocalNodeStateError, err.Error()
	}
	if time.Now().After(s.current().Certificate.Leaf.NotAfter) {
		info.LocalNodeState = swarm.LocalNodeStateError
		info.Error = "Swarm certificates have expired. To replace them, leave the swarm and join again."
	}
	return info
}

// Store is the replicated state, as new as any acknowledged write.
func (m *Membership) Store(ctx context.Context) (store.Proposer, error) {
	h, err := m.manager()
	if err != nil {
		return nil, err
	}
	if _, err := h.member.Read(ctx); err != nil {
		return nil, err
	}
	return h.member, nil
}

// Replica is what this manager has of the replicated state, which may be old.
func (m *Membership) Replica() (*store.Snapshot, error) {
	h, err := m.manager()
	if err != nil {
		return nil, err
	}
	return h.member.Snapshot(), nil
}

// manager is the manager's half, or why there is none.
func (m *Membership) manager() (*half, error) {
	s := m.stay.Load()
	if s == nil {
		return nil, object.Errorf(errdefs.ErrUnavailable, `This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	}
	h := s.half.Load()
	switch {
	case h == nil && !s.isManager():
		return nil, object.Errorf(errdefs.ErrUnavailable, "This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	case h != nil && !h.isReady() && h.member.Leader() == "" && len(h.member.Members()) > 1:
		// What this replica has may not be shown: only a leader knows what of it holds.
		return nil, replica.NoLeader()
	case h == nil || !h.isReady():
		return nil, object.Errorf(errdefs.ErrUnavailable, "This node is not a swarm manager. Manager is being prepared or has trouble connecting to the cluster.")
	}
	return h, nil
}

// TLSInfo is what other nodes may know of this one's certificate.
func (m *Membership) TLSInfo() swarm.TLSInfo {
	st := m.cfg.Keys.State()
	info := swarm.TLSInfo{TrustRoot: string(st.Roots)}
	chain, err := pki.ParseChain(st.Certificate)
	if err != nil {
		return info
	}
	// Its key tells roots of one name apart.
	roots, _ := pki.ParseChain(st.Roots)
	info.CertIssuerSubject, info.CertIssuerPublicKey = pki.Issuer(chain, roots)
	return info
}
