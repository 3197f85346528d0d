package replica_test

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"skep/store"
	"skep/store/object"
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
	for _, writers := range []int{1, 32, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			m, _ := run(b, config(b, b.TempDir()), nil)
			<-m.Ready()
			var left, done atomic.Int64
			left.Store(int64(b.N))
			b.ResetTimer()
			var wg sync.WaitGroup
			for range writers {
				wg.Go(func() {
					for left.Add(-1) >= 0 {
						tx := store.Begin(m.Snapshot())
						tx.Create(&object.Task{ID: object.NewID(), ServiceID: "s"})
						if _, err := m.Propose(b.Context(), tx); err != nil {
							b.Error(err)
							return
						}
						done.Add(1)
					}
				})
			}
			wg.Wait()
			b.ReportMetric(float64(done.Load())/b.Elapsed().Seconds(), "commits/s")
		})
	}
}
