package appliance

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"skep/appliance/membership"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store"
)

// resealRetry is how long a resealing that failed waits.
const resealRetry = 10 * time.Second

// rekeying makes the node's keystore follow its swarm: managers lock it with
// the swarm's unlock key, workers do not lock it. After each change it has all
// of the node's files sealed anew, and then forgets the key that sealed them.
type rekeying struct {
	keys *identity.Keystore
	// parts are those of the node itself, whatever its part in a swarm.
	parts  []membership.Sealed
	logger *slog.Logger
}

// followKEK runs through a stay in a swarm: p is the store of a manager, nil on
// a worker, and parts are all that is sealed because of this stay. Each time
// when the node's TLS key is to be replaced, stale is called; it must not wait.
func (r *rekeying) followKEK(ctx context.Context, p store.Proposer, stale func(), parts ...membership.Sealed) error {
	parts = append(parts, r.parts...)
	if r.keys.State().StaleKey { // since before the last stop
		stale()
	}
	for index := uint64(0); ; {
		want, news := kek{}, (<-chan struct{})(nil)
		if p != nil {
			c := p.Since(index)
			index, news = c.Snapshot.Index, c.News
			want = wantedKEK(c.Snapshot, r.keys.State())
		}
		changed, err := r.apply(ctx, want)
		if err != nil {
			return err
		}
		if changed && r.keys.State().StaleKey {
			stale()
		}
		var retry <-chan time.Time
		if err := r.reseal(ctx, parts); err != nil && ctx.Err() == nil {
			r.logger.WarnContext(ctx, "did not seal all files anew", "err", err, "retry", resealRetry)
			news, retry = nil, time.After(resealRetry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-news:
		case <-retry:
		}
	}
}

// kek is a key for the keystore; none if the keystore opens by itself.
type kek struct {
	key     seal.Secret
	version uint64
}

// wantedKEK is the key that a manager's keystore should have. A member that
// reads old state again, after a start, keeps the newer key that it has.
func wantedKEK(s *store.Snapshot, now identity.State) kek {
	c := s.Cluster()
	if c == nil || c.KEKVersion <= now.KEKVersion {
		return kek{version: now.KEKVersion}
	}
	return kek{c.UnlockKey, c.KEKVersion}
}

// apply changes the keystore's key, if it is not the wanted one. The version
// tells: that of a worker is 0.
func (r *rekeying) apply(ctx context.Context, want kek) (changed bool, err error) {
	switch now := r.keys.State(); {
	case now.KEKVersion == want.version:
		return false, nil
	case len(want.key) > 0:
		err = r.keys.Lock(want.key, want.version)
	default:
		err = r.keys.Unlocked(want.version)
	}
	if err != nil {
		return false, fmt.Errorf("change the keystore's key: %w", err)
	}
	r.logger.InfoContext(ctx, "changed the key of the keystore", "locked", len(want.key) > 0, "version", want.version)
	return true, nil
}

// reseal goes on with a change of the key that seals the node's files, if there
// is one: old keys are forgotten when nothing is sealed with them any more.
func (r *rekeying) reseal(ctx context.Context, parts []membership.Sealed) error {
	if len(r.keys.State().DEKs) == 1 {
		return nil
	}
	began := time.Now()
	for _, p := range parts {
		if err := p.Reseal(ctx); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	if err := r.keys.RetireDEKs(); err != nil {
		return fmt.Errorf("forget old keys: %w", err)
	}
	r.logger.InfoContext(ctx, "sealed all files anew", "took", time.Since(began))
	return nil
}
