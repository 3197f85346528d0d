package membership

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"

	"github.com/moby/moby/api/types/swarm"

	"skep/pki/identity"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// forced is [errForced] with the addresses to go on with, as far as they are new.
type forced struct{ as asked }

func (f *forced) Error() string { return errForced.Error() }
func (f *forced) Unwrap() error { return errForced }

// recover makes this replica the only one of its swarm, in a new epoch. What
// the other managers have is worth nothing from then on. The old replica stays
// beside it, for who wants to look. The addresses that why names take the place
// of those that were asked for before.
func (m *Membership) recover(ctx context.Context, why error) error {
	var as asked
	if f, ok := errors.AsType[*forced](why); ok {
		as = f.as
	}
	st := m.cfg.Keys.State()
	to := object.NewID()
	if err := replica.Recover(ctx, m.replica(st.RaftID, st), m.replica(to, st)); err != nil {
		return err
	}
	// From here on this node is of the new epoch, and talks to nobody of the old.
	return m.cfg.Keys.Update(func(st *identity.State) error {
		st.Epoch++
		st.RaftID = to
		st.Peers = nil // they are of the old epoch
		st.ListenAs, st.AdvertiseAs = cmp.Or(as.listen, st.ListenAs), cmp.Or(as.advertise, st.AdvertiseAs)
		st.DataPathAs = cmp.Or(as.dataPath, st.DataPathAs)
		return nil
	})
}

func (m *Membership) replicaDir(raftID string) string { return filepath.Join(m.dir("raft"), raftID) }

// replica is the replica of that name on this node's disk.
func (m *Membership) replica(raftID string, st identity.State) replica.Config {
	return replica.Config{
		Dir: m.replicaDir(raftID), ID: raftID, NodeID: st.NodeID, ClusterID: st.ClusterID,
		Keyring: m.cfg.Keys.Keyring(), Logger: m.cfg.Logger,
	}
}

// recovered writes into the store that a new epoch has begun: the managers of
// the old one must join again.
func (h *half) recovered(ctx context.Context, id identity.State) error {
	for {
		snap := h.member.Snapshot()
		c := snap.Cluster()
		if c == nil || c.Epoch >= id.Epoch {
			return nil
		}
		tx := store.Begin(snap)
		c = c.Clone().(*object.Cluster)
		c.Epoch = id.Epoch
		c.GossipKeys.Departures++
		c.TunnelKeys.Departures++
		tx.Update(c)
		for n := range snap.Nodes.All() {
			if n.Spec.Role != swarm.NodeRoleManager {
				continue
			}
			n = n.Clone().(*object.Node)
			if n.ID == h.node {
				n.RaftID = h.raftID
				n.ManagerStatus = &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: h.advertise}
				tx.Update(n)
				continue
			}
			n.Spec.Role, n.ManagerStatus, n.RaftID = swarm.NodeRoleWorker, nil, ""
			n.MinGeneration = snap.Index + 1
			tx.Update(n)
		}
		if _, err := h.member.Propose(ctx, tx); !errors.Is(err, store.ErrSequence) {
			return err
		}
	}
}
