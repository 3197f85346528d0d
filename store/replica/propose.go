package replica

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/object"
)

// patience is how long a proposal or a read may take at most.
const patience = 20 * time.Second

// retryPause is how long a member waits before it asks for the leader again, if
// it hears of no other.
const retryPause = 25 * time.Millisecond

// ErrUnknownOutcome says that a change may have been made, or may yet be made,
// or not.
var ErrUnknownOutcome = errors.New("the outcome is unknown")

// NoLeader is the error of what needs a leader while there is none.
func NoLeader() error {
	return object.Errorf(errdefs.ErrUnavailable, "The swarm does not have a leader. It's possible that too few managers are online. Make sure more than half of the managers are online.")
}

func shuttingDown() error {
	return object.Errorf(errdefs.ErrUnavailable, "the manager is shutting down")
}

// Propose implements store.Proposer.
func (m *Member) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	if tx.Empty() {
		return m.Snapshot().Index, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	command, err := tx.Encode(time.Now())
	if err != nil {
		return 0, err
	}
	if !m.enter() {
		return 0, shuttingDown()
	}
	defer m.calls.Done()
	index, err := m.ask(ctx, false,
		func() (uint64, error) { return m.apply(ctx, command) },
		func(ctx context.Context, leader string) (uint64, error) {
			return m.cfg.Forward.Propose(ctx, leader, command)
		})
	if err != nil {
		if errors.Is(err, errLost) {
			err = fmt.Errorf("propose change: %w: %w", ErrUnknownOutcome, err)
		}
		return 0, err
	}
	// The change is made. A member that ends before it sees that, as one that
	// demotes itself, does not say otherwise.
	if err := m.reach(ctx, index); err != nil && !errors.Is(err, errShutdown) {
		return 0, fmt.Errorf("see own change: %w: %w", ErrUnknownOutcome, err)
	}
	return index, nil
}

// Read is the state with all that was acknowledged before the call.
func (m *Member) Read(ctx context.Context) (*store.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !m.enter() {
		return nil, shuttingDown()
	}
	defer m.calls.Done()
	index, err := m.ask(ctx, true,
		func() (uint64, error) { return m.verify(ctx) },
		func(ctx context.Context, leader string) (uint64, error) { return m.cfg.Forward.ReadIndex(ctx, leader) })
	if err == nil {
		err = m.reach(ctx, index)
	}
	if errors.Is(err, errLost) || errors.Is(err, ErrUnknownOutcome) || ctx.Err() != nil {
		return nil, NoLeader() // to read is to do nothing
	}
	if err != nil {
		return nil, err
	}
	return m.Snapshot(), nil
}

// Accept makes the changes of a command that another member was asked to make.
func (m *Member) Accept(ctx context.Context, command []byte) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	// What is in the log stops all who cannot apply it.
	if err := store.Check(command); err != nil {
		return 0, object.Errorf(errdefs.ErrInvalidArgument, "%w", err)
	}
	if !m.enter() {
		return 0, ErrNotLeader
	}
	defer m.calls.Done()
	return m.apply(ctx, command)
}

// ReadIndex is how far another member must be to know all that was acknowledged
// before the call.
func (m *Member) ReadIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if !m.enter() {
		return 0, ErrNotLeader
	}
	defer m.calls.Done()
	return m.verify(ctx)
}

// errLost says that a request got no answer.
var errLost = errors.New("no answer from the leader")

// ask asks the leader: here if it is this member, else there. It asks again only
// if certainly nothing was done, or if what is asked for does nothing.
func (m *Member) ask(ctx context.Context, again bool, here func() (uint64, error), there func(ctx context.Context, leader string) (uint64, error)) (uint64, error) {
	for {
		leader, changed, err := m.awaitLeader(ctx)
		if err != nil {
			return 0, err
		}
		var index uint64
		switch {
		case leader == m.cfg.NodeID:
			index, err = here()
		case m.cfg.Forward == nil:
			return 0, NoLeader()
		default:
			tctx, cancel := m.whileLeads(ctx, leader)
			index, err = there(tctx, leader)
			cancel()
			if _, answered := errors.AsType[*remoteError](err); err != nil && !answered && !errors.Is(err, ErrNotSent) {
				err = fmt.Errorf("%w: %w", errLost, err)
			}
		}
		retry := errors.Is(err, ErrNotLeader) || errors.Is(err, ErrNotSent) || again && errors.Is(err, errLost)
		if !retry {
			return index, err
		}
		select {
		case <-changed:
		case <-time.After(retryPause):
		case <-ctx.Done():
			return 0, NoLeader()
		case <-m.over:
			return 0, shuttingDown()
		}
	}
}

// whileLeads is a context that ends when somebody else leads: one that was
// leader and fell silent is not waited for.
func (m *Member) whileLeads(ctx context.Context, leader string) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() { // until cancel
		for ctx.Err() == nil {
			changed := m.LeaderChanged()
			if now := m.Leader(); now != "" && now != leader {
				cancel()
			}
			select {
			case <-changed:
			case <-ctx.Done():
			}
		}
	}()
	return ctx, cancel
}

// apply makes the changes of a command, if this member leads.
func (m *Member) apply(ctx context.Context, command []byte) (uint64, error) {
	if !m.running() {
		return 0, ErrNotLeader
	}
	// The disk of a member that does not lead is none of the leader's business.
	if m.raft.State() == raft.Leader {
		if err := m.full(); err != nil {
			return 0, err
		}
	}
	f, err := await(ctx, m, func() raft.ApplyFuture { return m.raft.Apply(command, patience) })
	switch {
	case err == nil:
	case errors.Is(err, raft.ErrRaftShutdown) && f.Index() != 0: // it is in the log
		return 0, fmt.Errorf("propose change: %w: %w", ErrUnknownOutcome, err)
	default:
		if why := refused(err); why != nil {
			return 0, why
		}
		return 0, fmt.Errorf("propose change: %w: %w", ErrUnknownOutcome, err)
	}
	if err, ok := f.Response().(error); ok {
		return 0, err
	}
	return f.Index(), nil
}

// refused is the error for Raft's saying that it did nothing, or nil if it may
// have done something.
func refused(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	case errors.Is(err, raft.ErrRaftShutdown):
		return shuttingDown()
	default:
		return nil
	}
}

// verify is the index of a state that had all that was acknowledged before the
// call. What this leader acknowledged is applied here, and so was, before it
// began to lead, what others acknowledged: it is enough that it still leads.
func (m *Member) verify(ctx context.Context) (uint64, error) {
	if !m.Leading() {
		return 0, ErrNotLeader
	}
	if _, err := await(ctx, m, m.raft.VerifyLeader); err != nil {
		return 0, ErrNotLeader
	}
	if !m.Leading() {
		return 0, ErrNotLeader
	}
	return m.Snapshot().Index, nil
}

// reach waits until this member's own state is as far as index.
func (m *Member) reach(ctx context.Context, index uint64) error {
	for {
		news := m.News()
		if m.Snapshot().Index >= index {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return ctx.Err()
		case <-m.over:
			return errShutdown
		}
	}
}

// await is what Raft makes of a request, or the error of ctx if it ends before.
// Raft's own timeouts only cover the time until it takes a request; and if its
// disk hangs it does not even take one.
func await[F raft.Future](ctx context.Context, m *Member, ask func() F) (F, error) {
	type answer struct {
		future F
		err    error
	}
	done := make(chan answer, 1)
	go func() { // ends with the future
		f := ask()
		done <- answer{f, f.Error()}
	}()
	var none F
	select {
	case a := <-done:
		return a.future, a.err
	case <-ctx.Done():
		return none, ctx.Err()
	case <-m.over: // Raft may have dropped it
		return none, errShutdown
	}
}
