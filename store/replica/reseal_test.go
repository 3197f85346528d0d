package replica_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"skep/pki/seal"
	"skep/store"
	"skep/store/replica"
)

// TestMember_ChangesItsKeyWhileItWorks gives a member new keys under load, and
// lets it forget the older each time.
func TestMember_ChangesItsKeyWhileItWorks(t *testing.T) {
	cfg := config(t, t.TempDir())
	cfg.Timing = replica.Timing{SnapshotInterval: 10 * time.Millisecond, SnapshotThreshold: 40, TrailingLogs: 10}
	m, stop := run(t, cfg, nil)
	<-m.Ready()
	var wg sync.WaitGroup
	over := make(chan struct{})
	written := 0
	wg.Go(func() {
		for {
			select {
			case <-over:
				return
			default:
				write(t, m, func(tx *store.Tx) { tx.Create(secret(fmt.Sprint(written), fmt.Sprint(written))) })
				written++
			}
		}
	})
	for range 8 {
		cfg.Keyring.Rotate(seal.NewSecret())
		if err := m.Reseal(t.Context()); err != nil {
			t.Fatal(err)
		}
		cfg.Keyring.Retire()
	}
	close(over)
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	m, _ = run(t, cfg, nil)
	<-m.Ready()
	if got := m.Snapshot().Secrets.Len(); got != written || written == 0 {
		t.Errorf("%d secrets, want %d", got, written)
	}
}
