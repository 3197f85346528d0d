package store_test

import (
	"bytes"
	"fmt"
	"io"
	"runtime"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// running is a task as most tasks are.
func running(i int) *object.Task {
	t := &object.Task{
		ID: object.NewID(), ServiceID: fmt.Sprintf("%025d", i%100), NodeID: fmt.Sprintf("%025d", 1000+i%1000), Slot: i,
		SpecVersion: swarm.Version{Index: 7}, DesiredState: swarm.TaskStateRunning,
		Status: swarm.TaskStatus{
			Timestamp: time.Unix(1e9, 0), State: swarm.TaskStateRunning, Message: "started",
			ContainerStatus: &swarm.ContainerStatus{ContainerID: fmt.Sprintf("%064d", i), PID: i},
		},
		AppliedAt: 1e18,
	}
	return t
}

func population(tb testing.TB, tasks int) *storetest.Local {
	tb.Helper()
	db := storetest.New(tb)
	db.Write(tb, func(tx *store.Tx) {
		for i := range 100 {
			s := new(object.Service)
			s.ID, s.Spec = fmt.Sprintf("%025d", i), spec(fmt.Sprint("s", i), "image")
			tx.Create(s)
		}
		for i := range 1000 {
			n := new(object.Node)
			n.ID = fmt.Sprintf("%025d", 1000+i)
			tx.Create(n)
		}
	})
	for i := 0; i < tasks; {
		db.Write(tb, func(tx *store.Tx) {
			for n := 0; n < 200 && i < tasks; n++ {
				tx.Create(running(i))
				i++
			}
		})
	}
	return db
}

// BenchmarkApply is what a transaction costs beside the disk: encode, decode,
// compare, change the tables, take a snapshot.
func BenchmarkApply(b *testing.B) {
	for _, batch := range []int{1, 200} {
		b.Run(fmt.Sprintf("tasks=100000/batch=%d", batch), func(b *testing.B) {
			db := population(b, 100_000)
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				tx := store.Begin(db.Snapshot())
				for range batch {
					tx.Create(running(n))
					n++
				}
				if _, err := db.Propose(b.Context(), tx); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "tasks/s")
		})
	}
}

func BenchmarkTable(b *testing.B) {
	db := population(b, 100_000)
	s := db.Snapshot()
	b.Run("scan", func(b *testing.B) {
		rows := 0
		for b.Loop() {
			for range s.Tasks.All() {
				rows++
			}
		}
		b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("by service", func(b *testing.B) {
		rows := 0
		for b.Loop() {
			for range s.Tasks.By(store.ByService, fmt.Sprintf("%025d", 5)) {
				rows++
			}
		}
		b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	})
	b.Run("get", func(b *testing.B) {
		var ids []string
		for t := range s.Tasks.All() {
			ids = append(ids, t.ID)
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			if _, ok := s.Tasks.Get(ids[i*7919%len(ids)]); !ok {
				b.Fatal("lost")
			}
			i++
		}
	})
}

// BenchmarkMemory is what a task costs in memory, its spec being shared.
func BenchmarkMemory(b *testing.B) {
	const tasks = 100_000
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	for b.Loop() {
		saved := save(b, population(b, tasks).Snapshot())
		without := save(b, population(b, 0).Snapshot())
		base := heap()
		empty, full := store.New(), store.New()
		if err := empty.Restore(bytes.NewReader(without)); err != nil {
			b.Fatal(err)
		}
		few := heap() - base
		if err := full.Restore(bytes.NewReader(saved)); err != nil {
			b.Fatal(err)
		}
		all := heap() - base - few
		b.ReportMetric(float64(all-few)/tasks, "B/task")
		runtime.KeepAlive(empty)
		runtime.KeepAlive(full)
		runtime.KeepAlive(saved)
		runtime.KeepAlive(without)
	}
}

func BenchmarkSnapshot(b *testing.B) {
	const tasks = 100_000
	s := population(b, tasks).Snapshot()
	b.Run(fmt.Sprintf("save/tasks=%d", tasks), func(b *testing.B) {
		for b.Loop() {
			if err := s.Save(io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
	saved := save(b, s)
	b.Run(fmt.Sprintf("restore/tasks=%d", tasks), func(b *testing.B) {
		b.ReportMetric(float64(len(saved))/tasks, "B/task")
		for b.Loop() {
			if err := store.New().Restore(bytes.NewReader(saved)); err != nil {
				b.Fatal(err)
			}
		}
	})
}
