// Package replica is one member of the group that replicates the store with
// Raft (hashicorp/raft).
//
// A change that [Member.Propose] acknowledged is on the disks of a majority and
// is never lost or reordered. Whether it was made is unknown only where the
// error says so. Being the leader is being inside the function that was given
// to [Member.Run]. A failure of the disk, or a command that this program does
// not know, ends the member: it returns from Run, and must not be tried again
// in the same process.
//
// The package decides nothing about who is a member, and opens no port: the
// transport is the caller's.
package replica

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"skep/pki/seal"
	"skep/store"
	"skep/store/raftlog"
)

// Config is what a Member needs.
type Config struct {
	// Dir is where the log and the snapshots are kept.
	Dir string
	// ID is the member's own: one that was removed never comes back under it.
	ID string
	// NodeID is the node's, which the other members know as its address.
	NodeID    string
	ClusterID string
	Keyring   *seal.Keyring
	// Transport connects the members; their addresses are their node IDs. Nil
	// is enough for a group of one. Run closes it.
	Transport raft.Transport
	// Forward reaches the leader from a member that does not lead. Without it
	// only the leader takes proposals.
	Forward Forwarder
	// Bootstrap makes a new group of this member alone, if there is no state yet.
	Bootstrap bool
	// Timing is for tests; the zero value is right for production.
	Timing Timing
	// Space tells how much room there is for the log; nil means to look at Dir's disk.
	Space func() (Space, error)
	// Stores take the place of Dir, for tests.
	Stores *Stores
	Logger *slog.Logger
}

// Timing is how patient a member is. Zero fields mean the defaults.
type Timing struct {
	Heartbeat         time.Duration // also the election timeout
	Lease             time.Duration
	Commit            time.Duration // at most twice this until followers know of it
	SnapshotInterval  time.Duration
	SnapshotThreshold uint64
	TrailingLogs      uint64
}

// Stores are where a member keeps its state.
type Stores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
}

// ErrDamaged says that what is on the disk is not what the member had stored, and
// that something it may have promised is lost. It must never take part again: a
// new member, with another ID and an empty directory, takes its place.
var ErrDamaged = raftlog.ErrDamaged

// ErrDisk says that the disk failed. The process is to end: another looks at
// what is really there.
var ErrDisk = raftlog.ErrFailed

// logCache is how many of the newest entries are kept in memory, for followers
// that are slightly behind.
const logCache = 512

// Member is one replica. It is a store.Proposer.
type Member struct {
	*store.Store
	cfg    Config
	stores Stores
	disk   *raftlog.Log // nil, as snaps, if there are Stores of the caller's
	snaps  *raftlog.Snapshots
	peers  *peers // the transport
	// solitary members have no transport, and so nobody to talk to.
	solitary bool

	leader   leader
	room     room
	lag      lag           // of the followers; belongs to the leader's session
	kicked   time.Time     // when the disk hung so long the last time that a member failed
	changing chan struct{} // holds a token while the configuration is changed
	failed   chan error    // the first failure that ends the member
	failOnce sync.Once
	broken   atomic.Bool // entries could not be stored
	leading  atomic.Bool
	ready    chan struct{} // closed when the group has a leader
	readied  sync.Once
	raft     *raft.Raft    // set before started is closed
	started  chan struct{} // closed by Run
	over     chan struct{} // closed at the end of Run

	mu      sync.Mutex
	closing bool           // guarded by mu: nothing new may be asked of Raft
	calls   sync.WaitGroup // of those who asked; grows under mu
}

// Open reads what is on the disk, or returns ErrDamaged. Call Run next, or Close.
func Open(cfg Config) (*Member, error) {
	m := &Member{
		Store: store.New(), cfg: cfg, changing: make(chan struct{}, 1),
		failed: make(chan error, 1), ready: make(chan struct{}), started: make(chan struct{}), over: make(chan struct{}),
	}
	transport := cfg.Transport
	if m.solitary = transport == nil; m.solitary {
		_, transport = raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
	}
	m.peers = newPeers(transport, cfg.NodeID)
	m.kicked = lastKick(cfg.Dir)
	if cfg.Stores != nil {
		m.stores = *cfg.Stores
		return m, nil
	}
	logs := logConfig(cfg, cfg.Dir)
	logs.Failed = m.fail
	disk, snaps, err := raftlog.Open(logs)
	if err != nil {
		return nil, err
	}
	cached, err := raft.NewLogCache(logCache, disk)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make log cache: %w", err), disk.Close())
	}
	if cfg.Space == nil {
		m.cfg.Space = func() (Space, error) { return spaceOf(cfg.Dir) }
	}
	m.disk, m.snaps, m.stores = disk, snaps, Stores{cached, disk, snaps}
	return m, nil
}

// Close is for a member that was not run.
func (m *Member) Close() error {
	if m.disk == nil {
		return nil
	}
	return m.disk.Close()
}

// Reseal seals all that the member has on its disk with the keyring's active key,
// while it takes part. When it returns nil the older keys can be forgotten; after
// an error, or a crash, it is to be called again.
func (m *Member) Reseal(ctx context.Context) error {
	if m.disk == nil {
		return nil
	}
	return raftlog.Reseal(ctx, m.disk, m.snaps)
}

// Ready is closed when the group has a leader for the first time, and so can
// take proposals.
func (m *Member) Ready() <-chan struct{} { return m.ready }

// Leading reports whether this member leads and knows all that was written
// before.
func (m *Member) Leading() bool { return m.leading.Load() }

// fail ends the member.
func (m *Member) fail(err error) {
	m.failOnce.Do(func() { m.failed <- err })
}

func (m *Member) setReady() { m.readied.Do(func() { close(m.ready) }) }

func (m *Member) config() *raft.Config {
	t := m.cfg.Timing
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(m.cfg.ID)
	c.HeartbeatTimeout = cmp.Or(t.Heartbeat, time.Second)
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = cmp.Or(t.Lease, c.HeartbeatTimeout/2)
	c.SnapshotThreshold = cmp.Or(t.SnapshotThreshold, 8192)
	c.SnapshotInterval = cmp.Or(t.SnapshotInterval, 2*time.Minute)
	c.TrailingLogs = cmp.Or(t.TrailingLogs, 10240)
	// A follower that forwarded a write learns by then that it is committed.
	c.CommitTimeout = cmp.Or(t.Commit, 10*time.Millisecond)
	c.MaxAppendEntries = 256 // proposals in flight that share an fsync
	c.NoLegacyTelemetry = true
	c.ShutdownOnRemove = false // it would not wait for the end of its goroutines
	c.Logger = newLogger(m.cfg.Logger)
	return c
}

// start makes the Raft node of what is on the disk.
func (m *Member) start(notify chan<- bool) error {
	c := m.config()
	if err := m.bootstrap(c); err != nil {
		return err
	}
	// The first election of a member that is alone need not wait for others to
	// speak up: a shorter timeout, set when it runs, makes it look at once.
	reload := raft.ReloadableConfig{
		TrailingLogs: c.TrailingLogs, SnapshotInterval: c.SnapshotInterval, SnapshotThreshold: c.SnapshotThreshold,
		HeartbeatTimeout: c.HeartbeatTimeout, ElectionTimeout: c.ElectionTimeout,
	}
	c.HeartbeatTimeout += time.Millisecond
	c.ElectionTimeout += time.Millisecond
	c.NotifyCh = notify
	r, err := raft.NewRaft(c, &fsm{member: m}, &haltingLog{m.stores.Log, m}, &haltingStable{m.stores.Stable, m}, &timedSnapshots{m.stores.Snapshots, m}, m.peers)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	m.raft = r
	close(m.started)
	if m.alone() {
		if err := r.ReloadConfig(reload); err != nil {
			return errors.Join(fmt.Errorf("configure raft: %w", err), r.Shutdown().Error())
		}
	}
	m.observe()
	return nil
}

// bootstrap makes sure that there is a group to take part in.
func (m *Member) bootstrap(c *raft.Config) error {
	old, err := raft.HasExistingState(m.stores.Log, m.stores.Stable, m.stores.Snapshots)
	switch {
	case err != nil:
		return fmt.Errorf("look for raft state: %w", err)
	case old:
		return nil
	case !m.cfg.Bootstrap && m.solitary:
		return fmt.Errorf("start raft: there is no state in %s, and nobody to get it from", m.cfg.Dir)
	case !m.cfg.Bootstrap:
		return nil // others will let it in
	}
	self := raft.Server{ID: c.LocalID, Address: raft.ServerAddress(m.cfg.NodeID)}
	err = raft.BootstrapCluster(c, m.stores.Log, m.stores.Stable, m.stores.Snapshots, m.peers,
		raft.Configuration{Servers: []raft.Server{self}})
	if err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}
