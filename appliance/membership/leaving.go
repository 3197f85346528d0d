package membership

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// handover is how long a manager that leaves waits to be let go by the others.
const handover = 10 * time.Second

// Leave takes the node out of its swarm. It removes the tasks' containers and
// all of the swarm's state.
func (m *Membership) Leave(ctx context.Context, force bool) error {
	if a := m.trying.Load(); a != nil {
		a.cancel(errLeft)
		return nil
	}
	s := m.stay.Load()
	if s == nil {
		return object.Errorf(errdefs.ErrUnavailable, "This node is not part of a swarm")
	}
	if h := s.half.Load(); h != nil {
		if !force {
			return object.Errorf(errdefs.ErrUnavailable, "%s", h.leaveWarning(ctx))
		}
		if h.letGo(ctx) {
			s.sayBye(ctx)
		}
	} else {
		s.sayBye(ctx)
	}
	s.finish(errLeft)
	select {
	case <-s.ended:
		return s.left
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leaveWarning is why a manager does not leave just like that.
func (h *half) leaveWarning(ctx context.Context) string {
	const (
		begin = "You are attempting to leave the swarm on a node that is participating as a manager. "
		end   = "The only way to restore a swarm that has lost consensus is to reinitialize it with `--force-new-cluster`. Use `--force` to suppress this message."
	)
	if _, err := h.member.Read(ctx); err != nil {
		return begin + "Doing so may lose the consensus of your cluster. " + end
	}
	reachable, voters := h.reachable()
	switch {
	case voters <= 1 && len(h.member.Members()) <= 1:
		return begin + "Removing the last manager erases all current state of the swarm. Use `--force` to ignore this message. "
	case reachable-1 < (voters+1)/2:
		return begin + fmt.Sprintf("Removing this node leaves %v managers out of %v. Without a Raft quorum your swarm will be inaccessible. ", reachable-1, voters) + end
	}
	return begin + end
}

// reachable counts the managers that are heard of, and all of them.
func (h *half) reachable() (up, all int) {
	for n := range h.member.Snapshot().Nodes.All() {
		if n.ManagerStatus == nil {
			continue
		}
		all++
		if n.ManagerStatus.Reachability == swarm.ReachabilityReachable || n.ID == h.node {
			up++
		}
	}
	return up, all
}

// letGo has the other managers go on without this one, if they can: a replica
// that just went away would count as one that is down. It tells whether they do.
func (h *half) letGo(ctx context.Context) bool {
	if len(h.member.Members()) <= 1 {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, handover)
	defer cancel()
	if err := h.resign(ctx); err != nil {
		h.cfg.Logger.WarnContext(ctx, "leaving without the other managers' knowing", "err", err)
		return false
	}
	select {
	case <-h.over:
		return true
	case <-ctx.Done():
		return false
	}
}

// farewell is how long a node that leaves looks for a manager to tell it to.
const farewell = 2 * time.Second

// sayBye has the swarm know at once that the node is down.
func (s *stay) sayBye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, farewell)
	defer cancel()
	s.agent.Leave(ctx)
}

// resign writes that this node is to be a worker.
func (h *half) resign(ctx context.Context) error {
	for {
		snap, err := h.member.Read(ctx)
		if err != nil {
			return err
		}
		n, ok := snap.Nodes.Get(h.node)
		if !ok || n.Spec.Role == swarm.NodeRoleWorker {
			return nil
		}
		n = n.Clone().(*object.Node)
		n.Spec.Role = swarm.NodeRoleWorker
		tx := store.Begin(snap)
		tx.Update(n)
		tx.Depart()
		if _, err := h.member.Propose(ctx, tx); !errors.Is(err, store.ErrSequence) {
			return err
		}
	}
}

// leave removes what the node had of its swarm. The swarm's tasks go with it.
func (m *Membership) leave(ctx context.Context) error {
	m.cfg.Logger.InfoContext(ctx, "leaving the swarm")
	if err := m.cfg.Executor.Retain(ctx, nil); err != nil {
		return fmt.Errorf("remove tasks: %w", err)
	}
	m.noNetworks()
	return m.forget()
}

// noNetworks says that nothing of the swarm's networks is to remain.
func (m *Membership) noNetworks() {
	if m.cfg.Networks != nil {
		m.cfg.Networks(nil)
	}
}

// forget makes the node a member of no swarm, for good.
func (m *Membership) forget() error {
	if err := m.cfg.Keys.Forget(); err != nil {
		return err
	}
	return m.wipe()
}

// wipe removes the swarm's state from the disk.
func (m *Membership) wipe() error {
	for _, name := range []string{"raft", "tasks", "networks"} {
		if err := os.RemoveAll(m.dir(name)); err != nil {
			return err
		}
	}
	return nil
}
