package raftlog_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// BenchmarkStoreLogs is appending and syncing, beside the same without sealing.
func BenchmarkStoreLogs(b *testing.B) {
	for _, batch := range []int{1, 32} {
		for _, sealed := range []bool{false, true} {
			b.Run(fmt.Sprintf("batch=%d/sealed=%v", batch, sealed), func(b *testing.B) {
				var logs raft.LogStore
				if sealed {
					l, _ := open(b, config(b, b.TempDir()))
					defer shut(b, l)
					logs = l
				} else {
					l, err := raftboltdb.NewBoltStore(filepath.Join(b.TempDir(), "raft.db"))
					if err != nil {
						b.Fatal(err)
					}
					defer func() {
						if err := l.Close(); err != nil {
							b.Error(err)
						}
					}()
					logs = l
				}
				next := uint64(1)
				data := make([]byte, 512)
				for b.Loop() {
					var ls []*raft.Log
					for range batch {
						ls = append(ls, &raft.Log{Index: next, Data: data})
						next++
					}
					if err := logs.StoreLogs(ls); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(next)/b.Elapsed().Seconds(), "entries/s")
			})
		}
	}
}
