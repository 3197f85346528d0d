package replica

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leader is who leads, as far as this member knows.
type leader struct {
	mu      sync.Mutex
	nodeID  string        // guarded by mu, as is all below; "" if nobody is known
	since   time.Time     // nobody was known, if nobody is
	changed chan struct{} // nil if nobody asked since the last change
}

func (l *leader) set(nodeID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if nodeID == "" && (l.nodeID != "" || l.since.IsZero()) {
		l.since = time.Now()
	}
	if nodeID == l.nodeID {
		return
	}
	l.nodeID = nodeID
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

func (l *leader) get() (nodeID string, since time.Time, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.nodeID, l.since, l.changed
}

// Leader is the node of the leader, or "" if this member knows of none. It may
// not be ready to lead yet, and may be gone.
func (m *Member) Leader() string {
	id, _, _ := m.leader.get()
	return id
}

// LeaderChanged closes when Leader changes.
func (m *Member) LeaderChanged() <-chan struct{} {
	_, _, changed := m.leader.get()
	return changed
}

// observe looks who leads.
func (m *Member) observe() {
	address, id := m.raft.LeaderWithID()
	if id == "" {
		address = ""
	}
	m.leader.set(string(address))
	if id != "" && id != raft.ServerID(m.cfg.ID) {
		m.setReady()
	}
}

// leaderPatience is how many election timeouts a group may be without a leader
// before those who need one are told so.
const leaderPatience = 5

// awaitLeader is the node that leads, and a channel that closes when another does.
func (m *Member) awaitLeader(ctx context.Context) (string, <-chan struct{}, error) {
	select {
	case <-m.started:
	case <-m.over:
		return "", nil, shuttingDown()
	case <-ctx.Done():
		return "", nil, NoLeader()
	}
	for {
		id, since, changed := m.leader.get()
		if id != "" {
			return id, changed, nil
		}
		timer := time.NewTimer(time.Until(since.Add(leaderPatience * m.config().ElectionTimeout)))
		select {
		case <-changed:
			timer.Stop()
		case <-timer.C:
			return "", nil, NoLeader()
		case <-ctx.Done():
			timer.Stop()
			return "", nil, NoLeader()
		case <-m.over:
			timer.Stop()
			return "", nil, shuttingDown()
		}
	}
}

func (m *Member) running() bool {
	select {
	case <-m.started:
		return true
	default:
		return false
	}
}
