package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/admin/engine"
	"skep/exec/containers"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store/object"
)

const (
	// attemptPause lies between two attempts to unlock.
	attemptPause = time.Second
	// settlePatience is how long the answer to an unlocking waits for the swarm.
	settlePatience = 5 * time.Second
)

// lock is what a node is while its keystore opens with the unlock key only. It
// ends with the one keystore that it puts in opened.
type lock struct {
	dir    string
	logger *slog.Logger
	// leave makes the keystore of a node in no swarm.
	leave func() (*identity.Keystore, error)
	// settled closes when the node is what it was before it stopped.
	settled func() <-chan struct{}

	turn   chan struct{} // held by who tries a key or leaves
	next   time.Time     // of the next attempt; belongs to the holder of turn
	open   atomic.Bool
	opened chan *identity.Keystore // buffered
	booted chan struct{}           // closed when the node serves all of its API
}

func newLock(dir string, logger *slog.Logger) *lock {
	return &lock{
		dir: dir, logger: logger,
		turn: make(chan struct{}, 1), opened: make(chan *identity.Keystore, 1), booted: make(chan struct{}),
	}
}

func (l *lock) state() swarm.LocalNodeState {
	if l.open.Load() {
		return swarm.LocalNodeStatePending
	}
	return swarm.LocalNodeStateLocked
}

// unlock tries a key, and returns when the node is back in its swarm. Of
// several at the same time one is tried and the others are refused, so that
// guessing takes its time, whoever guesses.
func (l *lock) unlock(ctx context.Context, key seal.Secret) error {
	return l.end(ctx, func() (*identity.Keystore, error) {
		wait := time.NewTimer(time.Until(l.next))
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
		k, err := identity.Unlock(l.dir, key)
		l.next = time.Now().Add(attemptPause)
		if errors.Is(err, identity.ErrWrongKey) {
			l.logger.WarnContext(ctx, "refused an unlock key")
			return nil, object.Errorf(errdefs.ErrUnauthenticated, "swarm could not be unlocked: invalid key provided")
		}
		return k, err
	})
}

// forsake leaves the swarm without the key.
func (l *lock) forsake(ctx context.Context) error {
	return l.end(ctx, l.leave)
}

// end ends the lock with the keystore that open gets.
func (l *lock) end(ctx context.Context, open func() (*identity.Keystore, error)) error {
	select {
	case l.turn <- struct{}{}:
	default:
		return object.Errorf(errdefs.ErrResourceExhausted, "another attempt to unlock is under way: try again in a second")
	}
	err := l.take(open)
	<-l.turn
	if err != nil {
		return err
	}
	select {
	case <-l.booted:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	patience := time.NewTimer(settlePatience)
	defer patience.Stop()
	select {
	case <-l.settled():
	case <-patience.C: // it is unlocked, and has no quorum yet
	case <-ctx.Done():
	}
	return nil
}

func (l *lock) take(open func() (*identity.Keystore, error)) error {
	if l.open.Load() {
		return object.Errorf(errdefs.ErrConflict, "swarm is not locked")
	}
	k, err := open()
	if err != nil {
		return err
	}
	l.open.Store(true)
	l.opened <- k
	return nil
}

// runLocked is a node from its start until it is unlocked, and then all that a
// node is, on the same listeners. Its containers go on all the time.
func (n *node) runLocked(ctx context.Context) error {
	l := newLock(n.dir.path, n.logger.With("part", "lock"))
	l.leave = n.abandon
	l.settled = func() <-chan struct{} { return n.membership.Settled() }
	if err := n.openLockedAPI(ctx, l); err != nil {
		return fmt.Errorf("admin API: %w", err)
	}
	n.logger.InfoContext(ctx, "the swarm is locked: unlock it with docker swarm unlock")
	return n.run(ctx, []part{{"admin API", n.serve}, {"node", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case n.keys = <-l.opened:
		}
		if err := n.open(ctx, n.rest()); err != nil {
			return err
		}
		close(l.booted)
		return n.run(ctx, n.parts())
	}}})
}

// openLockedAPI serves what a locked node does. What it is asked to do is
// audited apart from the rest: the keystore's keys are not at hand.
func (n *node) openLockedAPI(ctx context.Context, l *lock) (err error) {
	if n.lockedAudit, err = admin.OpenAudit(n.dir.join("audit-locked"), n.front.Keyring()); err != nil {
		return err
	}
	api := engine.NewLocked(engine.LockedConfig{
		Host: n.host, State: l.state, Unlock: l.unlock, Leave: l.forsake, Version: Version, Logger: l.logger,
	})
	mux, err := admin.NewMux(admin.MuxConfig{
		Routes: append(api.Routes(), admin.Health(func() error {
			return errors.New(`the swarm is locked: unlock it with "docker swarm unlock"`)
		})),
		Other:  api.Refuse,
		Audit:  n.lockedAudit,
		Hosts:  []string{n.host.hostname},
		Logger: l.logger,
	})
	if err != nil {
		return err
	}
	n.handler.set(api.Versioned(mux))
	return n.listen(ctx)
}

// abandon takes a locked node out of its swarm. What the keystore's keys sealed
// is lost without them: the swarm's state, the audit, and what the containers
// are, so that the next step removes them, those of no task too.
func (n *node) abandon() (*identity.Keystore, error) {
	n.logger.Warn("leaving the swarm without its key")
	if err := containers.Discard(n.dir.join("containers")); err != nil {
		return nil, err
	}
	for _, name := range []string{"raft", "tasks", "networks", "audit"} {
		if err := os.RemoveAll(n.dir.join(name)); err != nil {
			return nil, err
		}
	}
	return identity.Abandon(n.dir.path)
}

// switched is a handler that may be replaced while it serves.
type switched struct{ now atomic.Pointer[http.Handler] }

func (s *switched) set(h http.Handler) { s.now.Store(&h) }

func (s *switched) ServeHTTP(w http.ResponseWriter, r *http.Request) { (*s.now.Load()).ServeHTTP(w, r) }
