package replica

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// peers is the transport as Raft sees it. It notes what the other members
// answer, which Raft keeps to itself, and can be cut.
type peers struct {
	raft.Transport
	self raft.ServerAddress
	cut  atomic.Int32 // by how many; 0 if it is not
	// installs holds a token while a snapshot is sent: one at a time.
	installs chan struct{}

	mu   sync.Mutex
	seen map[raft.ServerID]peer // guarded by mu
}

// peer is what a member answered to this one.
type peer struct {
	last  time.Time
	term  uint64 // of our leadership that the answer was to
	match uint64
	// installing is set while it is sent a snapshot.
	installing bool
}

func newPeers(t raft.Transport, nodeID string) *peers {
	return &peers{Transport: t, self: raft.ServerAddress(nodeID), installs: make(chan struct{}, 1), seen: map[raft.ServerID]peer{}}
}

func (p *peers) get(id raft.ServerID) (peer, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.seen[id]
	return s, ok
}

// note keeps an answer. What a member has matched counts for one term: it may
// have lost its log since.
func (p *peers) note(id raft.ServerID, term, match uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[id]
	if s.term != term {
		s = peer{term: term, installing: s.installing}
	}
	s.last, s.match = time.Now(), max(s.match, match)
	p.seen[id] = s
}

func (p *peers) installing(id raft.ServerID, now bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.seen[id]
	s.installing = now
	p.seen[id] = s
}

// forget begins a new leadership.
func (p *peers) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	clear(p.seen)
}

// LocalAddr implements raft.Transport: an address is a node's ID.
func (p *peers) LocalAddr() raft.ServerAddress { return p.self }

// AppendEntriesPipeline implements raft.Transport. A follower that failed a few
// times may never get another entry through a pipeline.
func (p *peers) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

// AppendEntries implements raft.Transport.
func (p *peers) AppendEntries(id raft.ServerID, to raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if p.cut.Load() > 0 {
		return raft.ErrTransportShutdown
	}
	if err := p.Transport.AppendEntries(id, to, args, resp); err != nil {
		return err
	}
	var match uint64
	if resp.Success { // a heartbeat has no entries and names none before them
		match = args.PrevLogEntry + uint64(len(args.Entries))
	}
	p.note(id, args.Term, match)
	return nil
}

// RequestVote implements raft.Transport.
func (p *peers) RequestVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if p.cut.Load() > 0 {
		return raft.ErrTransportShutdown
	}
	return p.Transport.RequestVote(id, to, args, resp)
}

// RequestPreVote implements raft.WithPreVote.
func (p *peers) RequestPreVote(id raft.ServerID, to raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	t, ok := p.Transport.(raft.WithPreVote)
	if !ok || p.cut.Load() > 0 {
		return raft.ErrTransportShutdown
	}
	return t.RequestPreVote(id, to, args, resp)
}

// InstallSnapshot implements raft.Transport.
func (p *peers) InstallSnapshot(id raft.ServerID, to raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if p.cut.Load() > 0 {
		return raft.ErrTransportShutdown
	}
	p.installs <- struct{}{} // each has a deadline
	defer func() { <-p.installs }()
	p.installing(id, true)
	defer p.installing(id, false)
	if err := p.Transport.InstallSnapshot(id, to, args, resp, data); err != nil {
		return err
	}
	var match uint64
	if resp.Success {
		match = args.LastLogIndex
	}
	p.note(id, args.Term, match)
	return nil
}

// TimeoutNow implements raft.Transport.
func (p *peers) TimeoutNow(id raft.ServerID, to raft.ServerAddress, args *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if p.cut.Load() > 0 {
		return raft.ErrTransportShutdown
	}
	return p.Transport.TimeoutNow(id, to, args, resp)
}

// Close implements raft.WithClose.
func (p *peers) Close() error {
	p.cut.Add(1)
	if t, ok := p.Transport.(raft.WithClose); ok {
		return t.Close()
	}
	return nil
}
