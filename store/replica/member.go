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
	Dir       string
	NodeID    string
	ClusterID string
	Keyring   *seal.Keyring
	// Transport connects the members; their addresses are their node IDs. Nil
	// is enough for a group of one. The member closes it.
	Transport raft.Transport
	// Bootstrap makes a new group of this member alone, if there is no state yet.
	Bootstrap bool
	// Timing is for tests; the zero value is right for production.
	Timing Timing
	// Stores take the place of Dir, for tests.
	Stores *Stores
	Logger *slog.Logger
}

// Timing is how patient a member is. Zero fields mean the defaults.
type Timing struct {
	Heartbeat         time.Duration // also the election timeout
	Lease             time.Duration
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

// logCache is how many of the newest entries are kept in memory, for followers
// that are slightly behind.
const logCache = 512

// Member is one replica. It is a store.Proposer.
type Member struct {
	*store.Store
	cfg    Config
	stores Stores
	disk   *raftlog.Log // nil if there are Stores of the caller's
	// solitary members have no transport, and so nobody to talk to.
	solitary bool

	failed   chan error // the first failure that ends the member
	failOnce sync.Once
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

// Open reads what is on the disk. Call Run next, or Close.
func Open(cfg Config) (*Member, error) {
	m := &Member{
		Store: store.New(), cfg: cfg,
		failed: make(chan error, 1), ready: make(chan struct{}), started: make(chan struct{}), over: make(chan struct{}),
	}
	if m.solitary = cfg.Transport == nil; m.solitary {
		_, m.cfg.Transport = raft.NewInmemTransport(raft.ServerAddress(cfg.NodeID))
	}
	if cfg.Stores != nil {
		m.stores = *cfg.Stores
		return m, nil
	}
	disk, snaps, err := raftlog.Open(raftlog.Config{
		Dir: cfg.Dir, ClusterID: cfg.ClusterID, NodeID: cfg.NodeID, Keyring: cfg.Keyring,
		Failed: m.fail, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	cached, err := raft.NewLogCache(logCache, disk)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make log cache: %w", err), disk.Close())
	}
	m.disk, m.stores = disk, Stores{cached, disk, snaps}
	return m, nil
}

// Close is for a member that was not run.
func (m *Member) Close() error {
	if m.disk == nil {
		return nil
	}
	return m.disk.Close()
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
	c.LocalID = raft.ServerID(m.cfg.NodeID)
	c.HeartbeatTimeout = cmp.Or(t.Heartbeat, time.Second)
	c.ElectionTimeout = c.HeartbeatTimeout
	c.LeaderLeaseTimeout = cmp.Or(t.Lease, c.HeartbeatTimeout/2)
	c.SnapshotThreshold = cmp.Or(t.SnapshotThreshold, 8192)
	c.SnapshotInterval = cmp.Or(t.SnapshotInterval, 2*time.Minute)
	c.TrailingLogs = cmp.Or(t.TrailingLogs, 10240)
	c.MaxAppendEntries = 256 // proposals in flight that share an fsync
	c.NoLegacyTelemetry = true
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
	r, err := raft.NewRaft(c, &fsm{member: m}, &haltingLog{m.stores.Log, m}, &haltingStable{m.stores.Stable, m}, m.stores.Snapshots, m.cfg.Transport)
	if err != nil {
		return fmt.Errorf("start raft: %w", err)
	}
	m.raft = r
	if m.alone() {
		if err := r.ReloadConfig(reload); err != nil {
			return errors.Join(fmt.Errorf("configure raft: %w", err), r.Shutdown().Error())
		}
	}
	close(m.started)
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
	err = raft.BootstrapCluster(c, m.stores.Log, m.stores.Stable, m.stores.Snapshots, m.cfg.Transport,
		raft.Configuration{Servers: []raft.Server{self}})
	if err != nil {
		return fmt.Errorf("bootstrap raft: %w", err)
	}
	return nil
}

// alone reports whether this member is the only voter.
func (m *Member) alone() bool {
	f := m.raft.GetConfiguration()
	if f.Error() != nil {
		return false
	}
	voters := 0
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1
}

// Run takes part until ctx ends, and then returns nil, or until the member
// fails. While this member leads, lead runs; its ctx ends with the leadership.
// An error of lead ends the leadership, if another member can take it; else lead
// is called again after a while.
func (m *Member) Run(ctx context.Context, lead func(ctx context.Context) error) error {
	defer close(m.over)
	notify := make(chan bool, 8) // is emptied without delay; raft waits for it
	if err := m.start(notify); err != nil {
		return errors.Join(err, m.Close())
	}
	heard := make(chan raft.Observation, 8)
	obs := raft.NewObserver(heard, false, func(o *raft.Observation) bool {
		l, ok := o.Data.(raft.LeaderObservation)
		return ok && l.LeaderID != "" && l.LeaderID != raft.ServerID(m.cfg.NodeID)
	})
	m.raft.RegisterObserver(obs)
	defer m.raft.DeregisterObserver(obs)

	var (
		wg     sync.WaitGroup
		cancel = func(error) {} // of the leadership
		before = make(chan struct{})
		failed error
	)
	close(before)
	for failed == nil && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case failed = <-m.failed:
		case <-heard:
			m.setReady()
		case leads := <-notify:
			cancel(errLostLeadership)
			m.leading.Store(false)
			if leads {
				var lctx context.Context
				lctx, cancel = context.WithCancelCause(ctx)
				last, done := before, make(chan struct{})
				before = done
				wg.Go(func() {
					defer close(done)
					<-last // one at a time
					m.session(lctx, lead)
				})
			}
		}
	}
	cancel(errShutdown)
	wg.Wait()
	m.leading.Store(false)
	return errors.Join(failed, m.stop(failed != nil))
}

var (
	errLostLeadership = errors.New("lost leadership")
	errShutdown       = errors.New("shut down")
)

// session is the time of one leadership.
func (m *Member) session(ctx context.Context, lead func(context.Context) error) {
	log := m.cfg.Logger
	// Only after a barrier has this member applied all that former leaders
	// acknowledged.
	if err := m.await(ctx, m.raft.Barrier(0)); err != nil {
		log.InfoContext(ctx, "lost leadership before it began", "err", err)
		return
	}
	m.leading.Store(true)
	m.setReady()
	log.InfoContext(ctx, "began to lead")
	defer func() { log.InfoContext(ctx, "ceased to lead", "cause", context.Cause(ctx)) }()
	for delay := time.Second; ctx.Err() == nil; delay = min(2*delay, 30*time.Second) {
		var err error
		if lead != nil {
			err = lead(ctx)
		} else {
			<-ctx.Done()
		}
		if ctx.Err() != nil {
			return
		}
		log.ErrorContext(ctx, "leading failed", "err", err, "retry", delay)
		if !m.alone() && m.raft.LeadershipTransfer().Error() == nil {
			<-ctx.Done()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

// stopPatience is how long a member that failed waits for Raft, which may hang
// in the disk.
const stopPatience = 2 * time.Second

func (m *Member) stop(failed bool) error {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	if !failed {
		m.drain()
	}
	if !failed && m.raft.State() == raft.Leader && !m.alone() {
		if err := m.raft.LeadershipTransfer().Error(); err != nil {
			m.cfg.Logger.Warn("kept leadership to the end", "err", err)
		}
	}
	if !failed {
		// The next start has the less to replay.
		if err := m.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			m.cfg.Logger.Warn("wrote no snapshot at the end", "err", err)
		}
	}
	down := make(chan error, 1)
	// The goroutine outlives a member whose disk hangs: the process is about to end.
	go func() { down <- m.raft.Shutdown().Error() }()
	var err error
	if failed {
		select {
		case err = <-down:
		case <-time.After(stopPatience):
			return nil // not even the file can be closed now
		}
	} else {
		err = <-down
	}
	return errors.Join(err, m.Close())
}

// drain waits for the proposals in flight, within reason.
func (m *Member) drain() {
	done := make(chan struct{})
	go func() { m.calls.Wait(); close(done) }() // ends with the calls, which have deadlines
	select {
	case <-done:
	case <-time.After(stopPatience):
	}
}

// enter begins a call that asks something of Raft, and is false if Raft ends.
func (m *Member) enter() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closing {
		m.calls.Add(1)
	}
	return !m.closing
}
