package manager_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager"
	"skep/store"
	"skep/store/storetest"
)

func TestRun_MakesTheLeaderANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := storetest.New(t)
		m := manager.New(manager.Config{Store: s, NodeID: "m", Logger: slog.New(slog.DiscardHandler)})
		for range 2 { // one term after another
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- m.Run(ctx) }() // waited for below
			synctest.Wait()
			n, ok := s.Snapshot().Nodes.Get("m")
			if !ok || n.Spec.Role != swarm.NodeRoleManager || n.Spec.Availability != swarm.NodeAvailabilityActive {
				t.Errorf("node: got %+v", n)
			}
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Errorf("Run: got %v, want that it was canceled", err)
			}
		}
		if n := s.Snapshot().Nodes.Len(); n != 1 {
			t.Errorf("%d nodes, want 1", n)
		}
	})
}

// broken is a store that takes no writes.
type broken struct{ *storetest.Local }

var errBroken = errors.New("disk is full")

func (broken) Propose(context.Context, *store.Tx) (uint64, error) { return 0, errBroken }

func TestRun_EndsWithTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := manager.New(manager.Config{Store: broken{storetest.New(t)}, NodeID: "m", Logger: slog.New(slog.DiscardHandler)})
		if err := m.Run(t.Context()); !errors.Is(err, errBroken) {
			t.Errorf("Run: got %v, want %v", err, errBroken)
		}
	})
}
