package endpoints_test

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/endpoints"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// BenchmarkBoard is what one change of a task costs on a network of 50,000
// endpoints, and what a board and a session that begin anew cost.
func BenchmarkBoard(b *testing.B) {
	const n = 50_000
	s := storetest.New(b)
	write := func(do func(tx *store.Tx)) { s.Write(b, do) }
	write(func(tx *store.Tx) {
		tx.Create(network("a"))
		tx.Create(service("s", "a"))
		tx.Create(revision("s"))
		for i := range 50 {
			tx.Create(node(fmt.Sprint("n", i), swarm.NodeStateReady))
		}
	})
	for i := 0; i < n; i += 500 {
		write(func(tx *store.Tx) {
			for j := i; j < i+500; j++ {
				t := task(fmt.Sprintf("t%024d", j), "s", fmt.Sprint("n", j%50), swarm.TaskStateRunning, swarm.TaskStateRunning, "a")
				t.Networks[0].Addresses[0] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(j >> 8), byte(j)}), 16)
				tx.Create(t)
			}
		})
	}
	anew := func() *endpoints.Board {
		board := endpoints.NewBoard()
		board.Follow(store.Changes{Snapshot: s.Snapshot(), All: true})
		return board
	}
	b.Run("endpoints=50000/change", func(b *testing.B) {
		b.ReportAllocs()
		board, f := anew(), newFollower("n1")
		f.hear(b, board)
		states := []swarm.TaskState{swarm.TaskStateStarting, swarm.TaskStateRunning}
		after := s.Snapshot().Index
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			write(func(tx *store.Tx) {
				t, _ := tx.Base().Tasks.Get(fmt.Sprintf("t%024d", i*7%n))
				t = t.Clone().(*object.Task)
				t.Status.State = states[i%2]
				tx.Update(t)
			})
			ch := s.Since(after)
			after = ch.Snapshot.Index
			b.StartTimer()
			board.Follow(ch)
			board.Since("n1", &f.cursor)
		}
	})
	b.Run("endpoints=50000/board", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			anew()
		}
	})
	b.Run("endpoints=50000/session", func(b *testing.B) {
		b.ReportAllocs()
		board := anew()
		for b.Loop() {
			board.Since("n1", new(endpoints.Cursor))
		}
	})
}
