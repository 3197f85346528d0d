package replica_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// BenchmarkPropose is durable transactions per second, next to what the disk
// can do: fdatasync of one prepared page, one after another.
func BenchmarkPropose(b *testing.B) {
	b.Run("disk", func(b *testing.B) {
		f, err := os.Create(filepath.Join(b.TempDir(), "f"))
		if err != nil {
			b.Fatal(err)
		}
		page := make([]byte, 4096)
		for i := range 1024 {
			if _, err := f.WriteAt(page, int64(i*len(page))); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		n := 0
		for b.Loop() {
			if _, err := f.WriteAt(page, int64(n%1024*len(page))); err != nil {
				b.Fatal(err)
			}
			if err := syscall.Fdatasync(int(f.Fd())); err != nil {
				b.Fatal(err)
			}
			n++
		}
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "syncs/s")
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	})
	for _, members := range []int{1, 3} {
		for _, writers := range []int{1, 32, 256} {
			b.Run(fmt.Sprintf("members=%d/writers=%d", members, writers), func(b *testing.B) {
				dir, net := b.TempDir(), new(mesh)
				g := newGroup(b, members, func(i int) replica.Config { return onDisk(b, net, dir, i) })
				m := g.members[g.leader()]
				flood(b, writers, func() error {
					tx := store.Begin(m.Snapshot())
					tx.Create(&object.Task{ID: object.NewID(), ServiceID: "s"})
					_, err := m.Propose(b.Context(), tx)
					return err
				})
			})
		}
	}
	// The same without sealing, without a store, and with Raft's own pipeline.
	for _, writers := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("bare/members=3/writers=%d", writers), func(b *testing.B) {
			var logs []raft.LogStore
			var stables []raft.StableStore
			for range 3 {
				db, err := raftboltdb.NewBoltStore(filepath.Join(b.TempDir(), "raft.db"))
				if err != nil {
					b.Fatal(err)
				}
				logs, stables = append(logs, db), append(stables, db)
			}
			bare := newBare(b, 2, logs, stables)
			leader := bare.rafts[bare.leader(b)]
			data := make([]byte, 160) // about a task
			flood(b, writers, func() error { return leader.Apply(data, 10*time.Second).Error() })
		})
	}
}

// flood lets many write at once.
func flood(b *testing.B, writers int, write func() error) {
	b.Helper()
	var left, done atomic.Int64
	left.Store(int64(b.N))
	b.ResetTimer()
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := write(); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(done.Load())/b.Elapsed().Seconds(), "commits/s")
	b.StopTimer()
}
