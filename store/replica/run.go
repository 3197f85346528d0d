package replica

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// Run takes part until ctx ends, and then returns nil, or until the member
// fails. While this member leads, lead runs; its ctx ends with the leadership.
// An error of lead ends the leadership, if another member can take it; else lead
// is called again after a while.
func (m *Member) Run(ctx context.Context, lead func(ctx context.Context) error) error {
	defer close(m.over)
	notify := make(chan bool, 8) // is emptied without delay; raft waits for it
	if err := m.start(notify); err != nil {
		select {
		case reason := <-m.failed: // of which Raft says less
			err = errors.Join(reason, err)
		default:
		}
		return errors.Join(err, m.peers.Close(), m.Close())
	}
	// What it holds is only that there is news, so that none is lost if it is full.
	heard := make(chan raft.Observation, 1)
	obs := raft.NewObserver(heard, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	m.raft.RegisterObserver(obs)
	defer m.raft.DeregisterObserver(obs)
	m.observe()

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
			m.observe()
		case leads := <-notify:
			m.observe()
			cancel(errLostLeadership)
			m.leading.Store(false)
			if leads {
				m.peers.forget()
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
	m.leading.Store(false)
	ended := make(chan struct{})
	go func() { wg.Wait(); close(ended) }() // is waited for, unless it hangs in the disk
	if failed == nil {
		<-ended
	} else {
		within(ended, stopPatience)
	}
	return m.stop(context.WithoutCancel(ctx), failed)
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
	if _, err := await(ctx, m, func() raft.Future { return m.raft.Barrier(0) }); err != nil {
		log.InfoContext(ctx, "lost leadership before it began", "err", err)
		return
	}
	m.leading.Store(true)
	if ctx.Err() != nil {
		m.leading.Store(false) // it may have been lost just before
		return
	}
	m.setReady()
	log.InfoContext(ctx, "began to lead")
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { m.watchGroup(ctx) })
	defer func() { log.InfoContext(context.WithoutCancel(ctx), "ceased to lead", "cause", context.Cause(ctx)) }()
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
		if !m.alone() && m.Transfer(ctx, "") == nil {
			<-ctx.Done()
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(delay):
		}
	}
}

const (
	// stopPatience is how long a member that failed waits for Raft, which may
	// hang in the disk.
	stopPatience = 2 * time.Second
	// leavePatience is how long one that did not fail may take for its end.
	leavePatience = 30 * time.Second
)

// ErrHangs says that an end in good order does not come about: Raft waits for a
// disk or a connection. What was acknowledged is on the disk all the same.
var ErrHangs = errors.New("stop raft: it hangs")

func (m *Member) stop(ctx context.Context, failed error) error {
	m.mu.Lock()
	m.closing = true
	m.mu.Unlock()
	down := make(chan error, 1)
	// The goroutine outlives a member whose disk hangs: the process is about to end.
	go func() {
		if failed == nil {
			m.leave(ctx)
		}
		down <- m.raft.Shutdown().Error()
	}()
	patience := time.NewTimer(leavePatience)
	defer patience.Stop()
	if failed != nil {
		patience.Reset(stopPatience)
	}
	// In the other cases not even the file can be closed.
	select {
	case err := <-down:
		return errors.Join(failed, err, m.Close())
	case later := <-m.failed:
		return later
	case <-patience.C:
		return cmp.Or(failed, ErrHangs)
	}
}

// leave is the end in good order.
func (m *Member) leave(ctx context.Context) {
	m.drain()
	if m.raft.State() == raft.Leader && !m.alone() {
		if err := m.transfer(ctx, m.raft.LeadershipTransfer); err != nil {
			m.cfg.Logger.WarnContext(ctx, "kept leadership to the end", "err", err)
		}
	}
	// The next start has the less to replay.
	if err := m.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		m.cfg.Logger.WarnContext(ctx, "wrote no snapshot at the end", "err", err)
	}
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
