package replica

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/raft"
)

// Raft does not notice a disk that hangs: its heartbeats go on, and so a leader
// that can write nothing leads for ever. So every write is timed. If one takes
// too long, the others are left to themselves, who then elect another leader,
// and the member fails: what hangs in the kernel ends with the process at best.

// ErrStalled says that the disk did not answer in time. The process is to end:
// nothing else gets rid of a write that hangs.
var ErrStalled error = stall{}

type stall struct{}

func (stall) Error() string { return "the disk does not answer" }

// ExitStatus is the code that the process is to end with.
func (stall) ExitStatus() int { return 75 }

const (
	// stallLimit is how long a write may take. stallGrace comes on top, for a
	// process that was stopped itself.
	stallLimit = 4500 * time.Millisecond
	stallGrace = 500 * time.Millisecond
	// stallPause is the time between two failures over it, if there are others to
	// lead: a disk that stalls now and then is better than a member that is never up.
	stallPause = 10 * time.Minute
	stallMark  = "stalled"
)

// timed begins a write, which ends with the function that it returns.
func (m *Member) timed(what string) (end func()) {
	done := make(chan struct{})
	t := time.AfterFunc(stallLimit, func() { m.stalled(what, done) })
	return func() {
		t.Stop()
		close(done)
	}
}

func (m *Member) stalled(what string, done <-chan struct{}) {
	if within(done, stallGrace) {
		return
	}
	m.peers.cut.Add(1)
	if wait := time.Until(m.kicked.Add(stallPause)); wait > 0 && wait <= stallPause && !m.alone() {
		m.cfg.Logger.Warn("the disk does not answer; left the group until it does", "write", what)
		if within(done, wait) {
			m.peers.cut.Add(-1)
			return
		}
	}
	if m.disk != nil {
		// Not awaited: it may hang as well.
		go func() { _ = os.WriteFile(filepath.Join(m.cfg.Dir, stallMark), nil, 0o600) }()
	}
	m.fail(fmt.Errorf("%w: to %s takes more than %s", ErrStalled, what, stallLimit+stallGrace))
	_ = m.peers.Close() // it is cut off already
}

// within reports whether done closes in time.
func within(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// lastKick is when a member in this directory failed over its disk last.
func lastKick(dir string) time.Time {
	info, err := os.Stat(filepath.Join(dir, stallMark))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}

// A follower can answer heartbeats and still get no entries (a fault of Raft's,
// or its disk's). Another leader may have more luck with it.
const (
	lagTick  = 5 * time.Second
	lagLimit = 30 * time.Second
	lagPause = 10 * time.Minute // between two hand-overs
)

// lag watches the followers of a leader.
type lag struct {
	frozen map[raft.ServerID]frozen
	handed time.Time // the leadership over, the last time
}

// frozen is a follower that lacks entries, and how far it was since when.
type frozen struct {
	since         time.Time
	match, commit uint64
}

// stuck is a follower that is in contact and did not move for a while, though
// the group did.
func (l *lag) stuck(now time.Time, commit uint64, servers []raft.Server, get func(raft.ServerID) (peer, bool)) (raft.Server, bool) {
	next := map[raft.ServerID]frozen{}
	defer func() { l.frozen = next }()
	for _, s := range servers {
		p, ok := get(s.ID)
		if !ok || p.installing || p.match >= commit || now.Sub(p.last) > lagTick {
			continue
		}
		f, before := l.frozen[s.ID]
		if !before || f.match != p.match {
			next[s.ID] = frozen{now, p.match, commit}
			continue
		}
		next[s.ID] = f
		if now.Sub(f.since) > lagLimit && commit > f.commit {
			return s, true
		}
	}
	return raft.Server{}, false
}

// watchGroup hands the leadership over if another member may lead better. It ends
// with ctx.
func (m *Member) watchGroup(ctx context.Context) {
	tick := time.NewTicker(lagTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			servers := m.configuration().Servers
			if len(servers) < 2 || m.alone() {
				continue
			}
			s, stuck := m.lag.stuck(now, m.raft.CommitIndex(), servers, m.peers.get)
			why := m.full()
			if stuck {
				why = fmt.Errorf("the manager on node %s gets no changes", s.Address)
			}
			if why == nil || now.Sub(m.lag.handed) < lagPause {
				continue
			}
			m.lag.handed = now
			m.cfg.Logger.WarnContext(ctx, "handing over leadership", "cause", why)
			if err := m.Transfer(ctx, ""); err != nil {
				m.cfg.Logger.WarnContext(ctx, "kept leadership", "err", err)
			}
		}
	}
}
