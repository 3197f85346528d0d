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

// ErrUnknownOutcome says that a change may have been made, or may yet be made,
// or not.
var ErrUnknownOutcome = errors.New("the outcome is unknown")

func noLeader() error {
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
	select {
	case <-m.ready:
	case <-ctx.Done():
		return 0, noLeader()
	}
	command, err := tx.Encode(time.Now())
	if err != nil {
		return 0, err
	}
	if !m.enter() {
		return 0, shuttingDown()
	}
	defer m.calls.Done()
	f := m.raft.Apply(command, patience)
	switch err := m.await(ctx, f); {
	case err == nil:
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return 0, noLeader()
	case errors.Is(err, raft.ErrRaftShutdown):
		return 0, shuttingDown()
	default:
		return 0, fmt.Errorf("propose change: %w: %w", ErrUnknownOutcome, err)
	}
	if err, ok := f.Response().(error); ok {
		return 0, err
	}
	return f.Index(), nil
}

// Read is the state with all that was acknowledged before the call.
func (m *Member) Read(ctx context.Context) (*store.Snapshot, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	select {
	case <-m.ready:
	case <-ctx.Done():
		return nil, noLeader()
	}
	// What this leader acknowledged is applied here, and so was, before it began
	// to lead, what others acknowledged: it is enough that it still leads.
	if !m.Leading() {
		return nil, noLeader()
	}
	if !m.enter() {
		return nil, shuttingDown()
	}
	defer m.calls.Done()
	if err := m.await(ctx, m.raft.VerifyLeader()); err != nil {
		return nil, noLeader()
	}
	if !m.Leading() {
		return nil, noLeader()
	}
	return m.Snapshot(), nil
}

// await is the error of a future, or that of ctx if it ends before. Raft's own
// timeouts only cover the time until it takes a request.
func (m *Member) await(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- f.Error() }() // ends with the future
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-m.over: // Raft may have dropped it
		return errShutdown
	}
}
