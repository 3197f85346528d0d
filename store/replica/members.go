package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"skep/store/object"
)

// Server is one member of the group.
type Server struct {
	ID     string // the member's
	NodeID string
	Voter  bool
}

// Members are those of the newest configuration that this member knows, even if
// it is not committed yet. Nobody is in it before Run.
func (m *Member) Members() []Server {
	var ss []Server
	for _, s := range m.configuration().Servers {
		ss = append(ss, Server{ID: string(s.ID), NodeID: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	return ss
}

func (m *Member) configuration() raft.Configuration {
	if !m.running() {
		return raft.Configuration{}
	}
	f := m.raft.GetConfiguration()
	if f.Error() != nil {
		return raft.Configuration{}
	}
	return f.Configuration()
}

// alone reports whether this member is the only voter.
func (m *Member) alone() bool {
	voters := 0
	for _, s := range m.configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1
}

// AddNonvoter lets a node's member in, which then follows the log and does not
// count. As all that changes the configuration it is the leader's to do, one
// change at a time; a change that is made already is none.
func (m *Member) AddNonvoter(ctx context.Context, id, nodeID string) error {
	return m.change(ctx, "add "+id, func() raft.IndexFuture {
		return m.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(nodeID), 0, patience)
	})
}

// AddVoter lets a node's member in, or makes it count.
func (m *Member) AddVoter(ctx context.Context, id, nodeID string) error {
	return m.change(ctx, "add voter "+id, func() raft.IndexFuture {
		return m.raft.AddVoter(raft.ServerID(id), raft.ServerAddress(nodeID), 0, patience)
	})
}

// DemoteVoter makes a member count no more; it goes on to follow the log. A
// leader refuses to demote itself: if the change reached nobody else, it would
// neither stand for election nor vote for those that lack the change.
func (m *Member) DemoteVoter(ctx context.Context, id string) error {
	if id == m.cfg.ID && m.Leading() && !m.alone() {
		return object.Errorf(errdefs.ErrFailedPrecondition, "demote voter %s: it leads: transfer the leadership first", id)
	}
	return m.change(ctx, "demote voter "+id, func() raft.IndexFuture {
		return m.raft.DemoteVoter(raft.ServerID(id), 0, patience)
	})
}

// ErrRemoved says that this member led the group and took itself out. (Raft does
// not tell a member that does not lead that it was removed.)
var ErrRemoved = errors.New("removed from the group")

// Remove takes a member out of the group for good. A leader that removes itself
// returns from Run with ErrRemoved.
func (m *Member) Remove(ctx context.Context, id string) error {
	err := m.change(ctx, "remove "+id, func() raft.IndexFuture {
		return m.raft.RemoveServer(raft.ServerID(id), 0, patience)
	})
	if err == nil && id == m.cfg.ID {
		m.fail(ErrRemoved)
	}
	return err
}

func (m *Member) change(ctx context.Context, what string, ask func() raft.IndexFuture) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case m.changing <- struct{}{}:
		defer func() { <-m.changing }()
	case <-ctx.Done():
		return object.Errorf(errdefs.ErrUnavailable, "%s: another change of the managers takes its time", what)
	}
	if !m.enter() {
		return shuttingDown()
	}
	defer m.calls.Done()
	if !m.running() {
		return ErrNotLeader
	}
	_, err := await(ctx, m, ask)
	if err == nil {
		return nil
	}
	if why := refused(err); why != nil {
		return why
	}
	// Raft has no name for it.
	if strings.Contains(err.Error(), "at least one voter") {
		return object.Errorf(errdefs.ErrFailedPrecondition, "%s: it is the last manager that votes", what)
	}
	return fmt.Errorf("%s: %w: %w", what, ErrUnknownOutcome, err)
}

// transferPatience is how long each of three tries to hand over may take.
const (
	transferPatience = 2 * time.Second
	transferTries    = 3
)

// Transfer hands the leadership to the voter of a node, or to the one that knows
// most if the node is "".
func (m *Member) Transfer(ctx context.Context, nodeID string) error {
	if !m.enter() {
		return shuttingDown()
	}
	defer m.calls.Done()
	if !m.running() {
		return ErrNotLeader
	}
	ask := m.raft.LeadershipTransfer
	if nodeID != "" {
		var to *raft.Server
		for _, s := range m.configuration().Servers {
			if string(s.Address) == nodeID && s.Suffrage == raft.Voter {
				to = new(s)
			}
		}
		if to == nil {
			return object.Errorf(errdefs.ErrNotFound, "no manager that votes is on node %s", nodeID)
		}
		ask = func() raft.Future { return m.raft.LeadershipTransferToServer(to.ID, to.Address) }
	}
	return m.transfer(ctx, ask)
}

func (m *Member) transfer(ctx context.Context, ask func() raft.Future) error {
	var err error
	for range transferTries {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		try, cancel := context.WithTimeout(ctx, transferPatience)
		_, err = await(try, m, ask)
		cancel()
		if err == nil || errors.Is(err, raft.ErrNotLeader) {
			return nil
		}
	}
	return object.Errorf(errdefs.ErrUnavailable, "transfer leadership: %w", err)
}

// Contact is what the leader knows of another member.
type Contact struct {
	// Last is when it answered last.
	Last time.Time
	// Match is up to where it has the leader's log on its disk.
	Match uint64
	// Behind is how many entries it lacks.
	Behind uint64
}

// Contacts are what this member knows of others, by their nodes: the leader
// knows of all who answered it since it leads, and the others only when they
// heard of the leader.
func (m *Member) Contacts() map[string]Contact {
	if !m.running() {
		return nil
	}
	if m.raft.State() != raft.Leader {
		address, id := m.raft.LeaderWithID()
		if id == "" {
			return nil
		}
		return map[string]Contact{string(address): {Last: m.raft.LastContact()}}
	}
	last := m.raft.LastIndex()
	cs := map[string]Contact{}
	for _, s := range m.configuration().Servers {
		if p, ok := m.peers.get(s.ID); ok {
			cs[string(s.Address)] = Contact{Last: p.last, Match: p.match, Behind: last - min(last, p.match)}
		}
	}
	return cs
}
