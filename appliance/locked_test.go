package appliance

import (
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/pki/identity"
	"skep/pki/seal"
)

// locked is a lock over a keystore that key opens; boot makes it serve.
func locked(t *testing.T) (l *lock, key seal.Secret, boot func()) {
	t.Helper()
	dir := t.TempDir()
	k, err := identity.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	key = seal.NewSecret()
	if err := errors.Join(k.Lock(key, 1), k.Close()); err != nil {
		t.Fatal(err)
	}
	l = newLock(dir, slog.New(slog.DiscardHandler))
	l.leave = func() (*identity.Keystore, error) { return identity.Abandon(dir) }
	settled := make(chan struct{})
	l.settled = func() <-chan struct{} { return settled }
	return l, key, func() { close(l.booted); close(settled) }
}

func TestLock_TakesOneKeyASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, key, boot := locked(t)
		const tries = 1000
		began := time.Now()
		for i := range tries {
			wrong := seal.NewSecret()
			if i%2 == 0 { // nearly right is as wrong as any
				copy(wrong, key)
				wrong[i%seal.KeySize] ^= 1
			}
			err := l.unlock(t.Context(), wrong)
			if !errdefs.IsUnauthorized(err) || err.Error() != "swarm could not be unlocked: invalid key provided" {
				t.Fatalf("try %d: got %v", i, err)
			}
		}
		if took := time.Since(began); took < (tries-1)*attemptPause {
			t.Errorf("%d tries took %s", tries, took)
		}
		if l.state() != swarm.LocalNodeStateLocked {
			t.Error("a wrong key opened it")
		}
		go func() { time.Sleep(3 * time.Second); boot() }()
		before := time.Now()
		if err := l.unlock(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(before); took != 3*time.Second {
			t.Errorf("answered after %s, the node was up after 3 s", took)
		}
		if l.state() != swarm.LocalNodeStatePending {
			t.Error("is still locked")
		}
		if err := l.unlock(t.Context(), key); !errdefs.IsConflict(err) {
			t.Errorf("unlocked twice: %v", err)
		}
		if err := (<-l.opened).Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLock_RefusesAllButOneAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, key, _ := locked(t)
		if err := l.unlock(t.Context(), seal.NewSecret()); !errdefs.IsUnauthorized(err) {
			t.Fatal(err)
		}
		var tried, refused atomic.Int64
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				switch err := l.unlock(t.Context(), seal.NewSecret()); {
				case errdefs.IsUnauthorized(err):
					tried.Add(1)
				case errdefs.IsResourceExhausted(err):
					refused.Add(1)
				default:
					t.Errorf("got %v", err)
				}
			})
		}
		wg.Wait()
		if tried.Load() != 1 || refused.Load() != 99 {
			t.Errorf("tried %d, refused %d", tried.Load(), refused.Load())
		}
		// A swarm without a quorum does not keep the operator waiting for ever.
		close(l.booted)
		before := time.Now()
		if err := l.unlock(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(before); took != attemptPause+settlePatience {
			t.Errorf("answered after %s", took)
		}
		if err := (<-l.opened).Close(); err != nil {
			t.Fatal(err)
		}
	})
}

func TestLock_EndsWhenTheNodeLeaves(t *testing.T) {
	l, key, boot := locked(t)
	boot()
	if err := l.forsake(t.Context()); err != nil {
		t.Fatal(err)
	}
	k := <-l.opened
	if s := k.State(); s.Locked || !s.Left {
		t.Errorf("got %+v", s)
	}
	if err := l.unlock(t.Context(), key); !errdefs.IsConflict(err) {
		t.Errorf("unlocked what it left: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}
