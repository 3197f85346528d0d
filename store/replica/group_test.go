package replica_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/object"
	"skep/store/replica"
	"skep/store/storetest"
)

func TestMember_ThatFollowsIsUsedLikeTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, storetest.Config{Size: 3})
		leader := c.Leader()
		for i := range 3 {
			<-c.Member(i).Ready()
			if got, want := c.Member(i).Leader(), fmt.Sprint("n", leader+1); got != want {
				t.Errorf("member %d hears %q lead, want %q", i, got, want)
			}
		}
		f := c.Member((leader + 1) % 3)
		if f.Leading() {
			t.Fatal("two lead")
		}
		// What one member acknowledged every other reads.
		for i := range 9 {
			index := write(t, c.Member(i%3), func(tx *store.Tx) { tx.Create(secret(fmt.Sprint(i), fmt.Sprint("s", i))) })
			s, err := c.Member((i + 1) % 3).Read(t.Context())
			if err != nil || s.Index < index {
				t.Errorf("round %d: read %v, %v", i, s, err)
			}
		}
		// What the leader refuses reads the same at a follower.
		for name, do := range map[string]func(tx *store.Tx){
			"name":    func(tx *store.Tx) { tx.Create(secret("x", "S1")) },
			"version": func(tx *store.Tx) { tx.Update(secret("1", "s1")) },
			"gone":    func(tx *store.Tx) { tx.Delete(secret("y", "y")) },
		} {
			var errs [2]error
			for i, m := range []*replica.Member{c.Member(leader), f} {
				tx := store.Begin(m.Snapshot())
				do(tx)
				_, errs[i] = m.Propose(t.Context(), tx)
			}
			if errs[0] == nil || errs[1] == nil || errs[0].Error() != errs[1].Error() {
				t.Errorf("%s: %v at the leader, %v at a follower", name, errs[0], errs[1])
			}
			for _, kind := range []error{store.ErrSequence, errdefs.ErrNotFound, errdefs.ErrAlreadyExists, replica.ErrUnknownOutcome} {
				if errors.Is(errs[0], kind) != errors.Is(errs[1], kind) {
					t.Errorf("%s: %v is of another kind at a follower: %v", name, errs[1], kind)
				}
			}
		}
		if _, err := c.Member(leader).Accept(t.Context(), []byte("no command")); !errdefs.IsInvalidArgument(err) {
			t.Errorf("accepted nonsense: %v", err)
		}
		if _, err := f.Accept(t.Context(), encode(t, f, "z")); !errors.Is(err, replica.ErrNotLeader) {
			t.Errorf("a follower accepted: %v", err)
		}
	})
}

func encode(tb testing.TB, m *replica.Member, id string) []byte {
	tb.Helper()
	tx := store.Begin(m.Snapshot())
	tx.Create(&object.Task{ID: id})
	b, err := tx.Encode(time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

func TestMember_ThatFollowsWaitsForANewLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, storetest.Config{Size: 3})
		old := c.Leader()
		f := c.Member((old + 1) % 3)
		changed := f.LeaderChanged()
		c.Crash(old)
		start := time.Now()
		write(t, f, func(tx *store.Tx) { tx.Create(secret("1", "one")) })
		t.Logf("written %s after the leader crashed", time.Since(start))
		if time.Since(start) > 10*time.Second {
			t.Error("took too long")
		}
		<-changed
		c.Crash((old + 2) % 3)
		start = time.Now()
		for time.Since(start) < 3*time.Second { // until it notices
			_, _ = f.Read(t.Context())
			time.Sleep(time.Second)
		}
		time.Sleep(10 * time.Second)
		start = time.Now()
		tx := store.Begin(f.Snapshot())
		tx.Create(secret("2", "two"))
		if _, err := f.Propose(t.Context(), tx); !errdefs.IsUnavailable(err) || errors.Is(err, replica.ErrUnknownOutcome) {
			t.Errorf("a minority: %v", err)
		}
		if _, err := f.Read(t.Context()); !errdefs.IsUnavailable(err) {
			t.Errorf("a minority read: %v", err)
		}
		if took := time.Since(start); took > 0 {
			t.Errorf("the second time it took %s to say so", took)
		}
		if f.Leader() != "" {
			t.Errorf("leads: %q", f.Leader())
		}
	})
}

func TestMember_ChangesWhoIsInTheGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := storetest.NewCluster(t, storetest.Config{Size: 3})
		m := c.Member(c.Leader())
		write(t, m, func(tx *store.Tx) { tx.Create(secret("1", "one")) })
		time.Sleep(time.Second)
		contacts := m.Contacts()
		if len(contacts) != 2 {
			t.Errorf("contacts: %v", contacts)
		}
		for id, contact := range contacts {
			if contact.Behind != 0 || contact.Match == 0 || time.Since(contact.Last) > time.Second {
				t.Errorf("%s: %+v", id, contact)
			}
		}
		var other replica.Server
		for _, s := range m.Members() {
			if !s.Voter {
				t.Errorf("%+v does not vote", s)
			}
			if s.NodeID != m.Leader() {
				other = s
			}
		}
		voters := func() (n int) {
			for _, s := range m.Members() {
				if s.Voter {
					n++
				}
			}
			return n
		}
		for _, step := range []struct {
			name            string
			do              func(ctx context.Context) error
			members, voters int
		}{
			{"demote", func(ctx context.Context) error { return m.DemoteVoter(ctx, other.ID) }, 3, 2},
			{"remove", func(ctx context.Context) error { return m.Remove(ctx, other.ID) }, 2, 2},
			{"remove again", func(ctx context.Context) error { return m.Remove(ctx, other.ID) }, 2, 2},
			{"add", func(ctx context.Context) error { return m.AddNonvoter(ctx, other.ID, other.NodeID) }, 3, 2},
			{"promote", func(ctx context.Context) error { return m.AddVoter(ctx, other.ID, other.NodeID) }, 3, 3},
		} {
			if err := step.do(t.Context()); err != nil {
				t.Fatalf("%s: %v", step.name, err)
			}
			if got := len(m.Members()); got != step.members || voters() != step.voters {
				t.Errorf("%s: %d members, %d vote, want %d and %d", step.name, got, voters(), step.members, step.voters)
			}
		}
		write(t, m, func(tx *store.Tx) { tx.Create(secret("2", "two")) })
		if err := m.Transfer(t.Context(), other.NodeID); err != nil {
			t.Fatal(err)
		}
		now := c.Member(c.Leader())
		if now.Leader() != other.NodeID {
			t.Errorf("%s leads, want %s", now.Leader(), other.NodeID)
		}
		if err := m.Remove(t.Context(), other.ID); !errors.Is(err, replica.ErrNotLeader) {
			t.Errorf("a follower changed the group: %v", err)
		}
		if err := now.Transfer(t.Context(), "nobody"); !errdefs.IsNotFound(err) {
			t.Errorf("handed over to nobody: %v", err)
		}
	})
}

func TestMember_ThatRemovesItselfEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGroup(t, 3, inMemory(make([]*raft.InmemTransport, 3), nil))
		defer g.endInBubble()
		old := g.leader()
		if err := g.members[old].Remove(t.Context(), memberName(old)); err != nil {
			t.Fatal(err)
		}
		if err := <-g.done[old]; !errors.Is(err, replica.ErrRemoved) {
			t.Errorf("ended with %v", err)
		}
		fresh := g.members[g.leader(old)]
		write(t, fresh, func(tx *store.Tx) { tx.Create(secret("1", "one")) })
		if got := len(fresh.Members()); got != 2 {
			t.Errorf("%d members, want 2", got)
		}
	})
}
