package dataplane

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"skep/appliance/wire"
)

// pair is a node with the containers a and b, both of which serve.
func pair(t *testing.T) (w *world, set func(version uint64, a wire.EndpointState)) {
	t.Helper()
	w = newWorld(t)
	w.run(t)
	set = func(version uint64, a wire.EndpointState) {
		w.Set(view(version, members(front(), []wire.NetworkService{web("10.0.1.2")},
			task("ta", "n1", a, "10.0.1.3"), task("tb", "n1", wire.EndpointActive, "10.0.1.4"))))
		synctest.Wait()
	}
	set(1, wire.EndpointActive)
	for id, address := range map[string]string{"a": "10.0.1.3/24", "b": "10.0.1.4/24"} {
		if _, err := w.Connect(t.Context(), inFront(id, address)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Wait()
	w.lines()
	return w, set
}

func TestWithdraw_IsDoneWhenItReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := pair(t)
		began := time.Now()
		if err := w.Withdraw(t.Context(), "a"); err != nil || time.Since(began) != 0 {
			t.Fatalf("after %v: %v", time.Since(began), err)
		}
		has(t, w, "services /ns/b 10.0.1.2:10.0.1.3-,10.0.1.4", "names front:1")
		tells(t, w, "ta")
		// It is not done again, whatever else happens.
		if err := w.Withdraw(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		want(t, w)
		set(2, wire.EndpointActive)
		has(t, w, "services /ns/b 10.0.1.2:10.0.1.3-,10.0.1.4", "names front:1")
		tells(t, w, "ta")
		// The managers had the others follow.
		set(3, wire.EndpointDraining)
		tells(t, w, "ta")
		// The managers know nothing of it any more, nor does the node then.
		w.Set(view(4, members(front(), []wire.NetworkService{web("10.0.1.2")}, task("tb", "n1", wire.EndpointActive, "10.0.1.4"))))
		synctest.Wait()
		tells(t, w)
	})
}

func TestWithdraw_OfWhatTheManagersDrainedIsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, set := pair(t)
		set(2, wire.EndpointDraining)
		w.lines()
		if err := w.Withdraw(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := w.Withdraw(t.Context(), "unknown"); err != nil {
			t.Fatal(err)
		}
		want(t, w)
	})
}

// What nothing can be led to any more is not led to, whether managers answer or not.
func TestDisconnect_CutsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := pair(t)
		if err := w.Disconnect(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		has(t, w, "services /ns/b 10.0.1.2:10.0.1.4", "names front:1")
		tells(t, w, "ta")
		// The same task may begin again, as when its start failed.
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		has(t, w, "services /ns/b 10.0.1.2:10.0.1.3,10.0.1.4", "names front:2")
		tells(t, w)
	})
}

func TestWithdraw_WaitsASecondAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, inFront("a", "10.0.1.3/24")) // which nobody runs
		w.Set(view(1, members(front(), []wire.NetworkService{web("10.0.1.2")}, task("ta", "n1", wire.EndpointActive, "10.0.1.3"))))
		began := time.Now()
		if err := w.Withdraw(t.Context(), "a"); err != nil || time.Since(began) != withdrawWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// Rules that cannot be written do not hold a stop up.
func TestWithdraw_DoesNotWaitForWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := pair(t)
		w.failing("services /ns/b", errors.New("no"))
		began := time.Now()
		if err := w.Withdraw(t.Context(), "a"); err != nil || time.Since(began) != 0 {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

// tells wants the managers to know which tasks nothing is led to.
func tells(t *testing.T, w *world, tasks ...string) {
	t.Helper()
	if !slices.Equal(w.leaving, tasks) || len(w.leaving) != len(tasks) {
		t.Errorf("leaving: told %v, are %v; want %v", w.leaving, w.leaving, tasks)
	}
}

// has wants lines to be among those that were written down.
func has(t *testing.T, w *world, lines ...string) {
	t.Helper()
	all := map[string]bool{}
	got := w.lines()
	for _, l := range got {
		all[l] = true
	}
	for _, l := range lines {
		if !all[l] {
			t.Errorf("no %q in %q", l, got)
		}
	}
}
