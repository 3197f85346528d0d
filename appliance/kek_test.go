package appliance

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skep/appliance/membership"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// follower is a node that follows a swarm's unlock key. Its one file is resealed.
type follower struct {
	dir   string
	keys  *identity.Keystore
	store *storetest.Local
	file  atomic.Pointer[[]byte]
	fails atomic.Int64 // so often does resealing fail
	stale atomic.Int64 // so often was it told of
}

func newFollower(t *testing.T) *follower {
	t.Helper()
	f := &follower{dir: t.TempDir(), store: storetest.New(t)}
	var err error
	if f.keys, err = identity.Open(f.dir); err != nil {
		t.Fatal(err)
	}
	err = f.keys.Update(func(s *identity.State) error {
		s.Key = seal.Secret("a TLS key")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	f.file.Store(new(f.keys.Keyring().Seal("d", []byte("x"))))
	f.store.Write(t, func(tx *store.Tx) { tx.Create(&object.Cluster{ID: "c1"}) })
	return f
}

func (f *follower) reseal(context.Context) error {
	if f.fails.Add(-1) >= 0 {
		return errors.New("disk full")
	}
	plain, err := f.keys.Keyring().Open("d", *f.file.Load())
	if err == nil {
		f.file.Store(new(f.keys.Keyring().Seal("d", plain)))
	}
	return err
}

// set makes the unlock key what it is in the swarm.
func (f *follower) set(t *testing.T, key seal.Secret, version uint64) {
	t.Helper()
	f.store.Write(t, func(tx *store.Tx) {
		c := tx.Base().Cluster().Clone().(*object.Cluster)
		c.UnlockKey, c.KEKVersion = key, version
		tx.Update(c)
	})
}

// follow runs as a manager, or as a worker, for as long as the test.
func (f *follower) follow(t *testing.T, p store.Proposer) (stop func()) {
	t.Helper()
	r := &rekeying{keys: f.keys, logger: slog.New(slog.DiscardHandler)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- r.followKEK(ctx, p, func() { f.stale.Add(1) }, membership.Sealed{Name: "file", Reseal: f.reseal})
	}()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// expect says what the keystore is to be, and that nothing is left of old keys.
func (f *follower) expect(t *testing.T, isLocked bool, version uint64, stale int64) {
	t.Helper()
	synctest.Wait()
	s := f.keys.State()
	if s.Locked != isLocked || s.KEKVersion != version || len(s.DEKs) != 1 || f.stale.Load() != stale {
		t.Errorf("locked %t, version %d, %d keys, told %d times of a stale one; want %t, %d, 1, %d",
			s.Locked, s.KEKVersion, len(s.DEKs), f.stale.Load(), isLocked, version, stale)
	}
	if !f.keys.Keyring().Current(*f.file.Load()) {
		t.Error("the file is sealed with an old key")
	}
}

func TestRekeying_FollowsTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(t)
		first, second := seal.NewSecret(), seal.NewSecret()
		stop := f.follow(t, f.store)
		f.expect(t, false, 0, 0)
		f.set(t, first, 7)
		f.expect(t, true, 7, 1)
		f.set(t, second, 9)
		f.expect(t, true, 9, 2)
		f.set(t, first, 8) // a member that reads its log again
		f.expect(t, true, 9, 2)
		f.set(t, nil, 12)
		f.expect(t, false, 12, 3)
		f.set(t, second, 15)
		f.expect(t, true, 15, 4)
		stop()

		// Nobody has replaced the TLS key: each start asks for it again.
		stop = f.follow(t, nil) // it was demoted
		f.expect(t, false, 0, 6)
		stop()
		err := f.keys.Update(func(s *identity.State) error {
			s.Key = seal.Secret("another TLS key")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		stop = f.follow(t, f.store) // and promoted again
		f.expect(t, true, 15, 7)
		stop()
		if err := f.keys.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := identity.Open(f.dir); !errors.Is(err, identity.ErrLocked) {
			t.Errorf("got %v", err)
		}
		if _, err := identity.Unlock(f.dir, first); !errors.Is(err, identity.ErrWrongKey) {
			t.Errorf("the key from before opens it: %v", err)
		}
	})
}

func TestRekeying_GoesOnUntilAllIsSealedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFollower(t)
		f.fails.Store(2)
		stop := f.follow(t, f.store)
		f.set(t, seal.NewSecret(), 7)
		synctest.Wait()
		if got := len(f.keys.State().DEKs); got != 2 {
			t.Errorf("forgot the old key while it is in use: %d keys", got)
		}
		stop() // a stop in the middle, and a start
		stop = f.follow(t, f.store)
		synctest.Wait()
		if got := len(f.keys.State().DEKs); got != 2 {
			t.Errorf("forgot the old key while it is in use: %d keys", got)
		}
		time.Sleep(resealRetry)
		f.expect(t, true, 7, 2)
		stop()
		if err := f.keys.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
