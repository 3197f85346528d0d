package keys_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"skep/appliance/manager/keys"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// ring is keys by letters.
func ring(text string) (out [][]byte) {
	for k := range strings.SplitSeq(text, "") {
		out = append(out, []byte(k))
	}
	return out
}

func text(ring [][]byte) string {
	var b strings.Builder
	for _, k := range ring {
		b.Write(k)
	}
	return b.String()
}

func TestPlan(t *testing.T) {
	now := time.Unix(1e9, 0)
	ago := func(d time.Duration) int64 { return now.Add(-d).UnixNano() }
	rest, add, use := object.KeyRest, object.KeyAdd, object.KeyUse
	tests := []struct {
		name    string
		ring    string
		step    object.KeyStep
		stepped time.Duration // ago
		rotated time.Duration // ago
		left    uint64        // departures without an answer
		acked   bool
		want    string // the ring after it
		next    object.KeyStep
		wait    time.Duration // until the next plan, if nothing is done
	}{
		{name: "first", rotated: 100 * time.Hour, want: "n", next: rest},
		{name: "young", ring: "a", rotated: 5 * time.Hour, acked: true, want: "a", next: rest, wait: time.Hour},
		{name: "old", ring: "a", rotated: 6 * time.Hour, want: "an", next: add},
		{name: "a node left", ring: "a", rotated: time.Minute, left: 1, want: "an", next: add},
		{name: "not acked", ring: "ab", step: add, stepped: 59 * time.Second, want: "ab", next: add, wait: time.Second},
		{name: "acked", ring: "ab", step: add, stepped: time.Second, acked: true, want: "ba", next: use},
		{name: "waited for", ring: "ab", step: add, stepped: time.Minute, want: "ba", next: use},
		{name: "used", ring: "ba", step: use, stepped: 20 * time.Second, acked: true, want: "ba", next: use, wait: 40 * time.Second},
		{name: "used long enough", ring: "ba", step: use, stepped: time.Minute, want: "b", next: rest},
		{name: "a node left with the next key", ring: "ab", step: add, left: 2, acked: true, want: "an", next: add},
		{name: "a node left with both keys", ring: "ba", step: use, left: 1, want: "ban", next: add},
		{name: "three keys", ring: "ban", step: add, acked: true, want: "nba", next: use},
		{name: "another left with three to come", ring: "bac", step: add, left: 1, want: "ban", next: add},
		{name: "another left with three", ring: "cba", step: use, left: 1, want: "cbn", next: add},
		{name: "three keys used long enough", ring: "cba", step: use, stepped: time.Minute, want: "c", next: rest},
		{name: "a clock that was a bit ahead", ring: "a", rotated: -time.Hour, want: "a", next: rest, wait: 7 * time.Hour},
		{name: "a clock that was far ahead", ring: "a", rotated: -1000 * time.Hour, want: "an", next: add},
		{name: "the same in a step", ring: "ab", step: add, stepped: -time.Hour, rotated: -time.Hour, want: "ba", next: use},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			k := object.KeyRing{Version: 8, Keys: ring(tt.ring), Step: tt.step, Stepped: ago(tt.stepped), Rotated: ago(tt.rotated), Departures: 4, Answered: 4 - tt.left}
			if tt.ring == "" {
				k.Keys = nil
			}
			before := text(k.Keys)
			next, at := keys.Plan(k, now, tt.acked, []byte("n"))
			if text(next.Keys) != tt.want || next.Step != tt.next {
				t.Errorf("got %s %q, want %s %q", text(next.Keys), next.Step, tt.want, tt.next)
			}
			if text(k.Keys) != before {
				t.Errorf("the stored ring %s became %s", before, text(k.Keys))
			}
			changed := tt.want != tt.ring
			if want := map[bool]uint64{false: 8, true: 9}[changed]; next.Version != want {
				t.Errorf("version: got %d, want %d", next.Version, want)
			}
			if changed != at.IsZero() || !changed && at.Sub(now) != tt.wait {
				t.Errorf("plan again at %v, which is in %v", at, at.Sub(now))
			}
			made := strings.Contains(tt.want, "n") && !strings.Contains(tt.ring, "n")
			if changed && next.Stepped != now.UnixNano() || made && next.Rotated != now.UnixNano() || !made && next.Rotated != k.Rotated {
				t.Errorf("stepped %d, rotated %d", next.Stepped, next.Rotated)
			}
			if len(next.Keys) > keys.Most || next.Step == add && next.Answered != next.Departures {
				t.Errorf("got %+v", next)
			}
		})
	}
}

// leader runs the loop as one leader after another would.
type leader struct {
	*testing.T
	store  *storetest.Local
	acked  atomic.Uint64
	cancel context.CancelFunc
	done   chan error
}

func (l *leader) begin() {
	ctx, cancel := context.WithCancel(l.Context())
	l.cancel, l.done = cancel, make(chan error, 1)
	go func() { // waited for by crash
		acked := func(version uint64) bool { return version <= l.acked.Load() }
		l.done <- keys.Run(ctx, l.store, acked, acked)
	}()
	synctest.Wait()
}

func (l *leader) crash() {
	l.Helper()
	l.cancel()
	if err := <-l.done; !errors.Is(err, context.Canceled) {
		l.Errorf("Run: got %v", err)
	}
}

func (l *leader) keys() object.KeyRing {
	synctest.Wait()
	return l.store.Snapshot().Cluster().GossipKeys
}

func (l *leader) want(what string, version uint64, step object.KeyStep, n int) object.KeyRing {
	l.Helper()
	k := l.keys()
	if k.Version != version || k.Step != step || len(k.Keys) != n {
		l.Fatalf("%s: got version %d, step %q and %d keys, want %d, %q, %d", what, k.Version, k.Step, len(k.Keys), version, step, n)
	}
	return k
}

func TestRun_LeadersGoOnWhereTheLastOneStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{T: t, store: storetest.New(t)}
		l.begin()
		l.store.Write(t, func(tx *store.Tx) {
			tx.Create(&object.Cluster{ID: "c"})
			n := &object.Node{}
			n.ID = "n1"
			tx.Create(n)
		})
		first := l.want("first key", 1, object.KeyRest, 1)
		time.Sleep(4 * time.Hour)
		l.crash()
		l.begin()
		time.Sleep(2*time.Hour - time.Second)
		l.want("before six hours", 1, object.KeyRest, 1)
		time.Sleep(2 * time.Second)
		added := l.want("after six hours and another leader", 2, object.KeyAdd, 2)
		time.Sleep(40 * time.Second)
		l.crash()
		time.Sleep(40 * time.Second)
		l.begin()
		used := l.want("nobody said that they have it", 3, object.KeyUse, 2)
		if !slices.Equal(used.Keys[0], added.Keys[1]) || !slices.Equal(used.Keys[1], first.Keys[0]) {
			t.Errorf("the new key is not the one that was added")
		}
		time.Sleep(50 * time.Second)

		// A node is removed and the leader crashes at once.
		n, _ := l.store.Snapshot().Nodes.Get("n1")
		l.crash()
		l.store.Write(t, func(tx *store.Tx) { tx.Delete(n); tx.Depart() })
		l.begin()
		three := l.want("a node was removed in the middle", 4, object.KeyAdd, 3)
		l.acked.Store(4)
		time.Sleep(2 * time.Second)
		last := l.want("all have it", 5, object.KeyUse, 3)
		if !slices.Equal(last.Keys[0], three.Keys[2]) {
			t.Error("the newest key is not used")
		}
		time.Sleep(61 * time.Second)
		one := l.want("in the end", 6, object.KeyRest, 1)
		if !slices.Equal(one.Keys[0], last.Keys[0]) || len(one.Keys[0]) != 32 {
			t.Errorf("the key that is left has %d bytes", len(one.Keys[0]))
		}
		time.Sleep(5 * time.Hour)
		l.want("the time begins anew with each key", 6, object.KeyRest, 1)
		l.crash()
	})
}
