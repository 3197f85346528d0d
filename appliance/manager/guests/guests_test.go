package guests_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/manager/guests"
	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// world is a store with networks, and what the leader answers from it.
type world struct {
	*testing.T
	store  *storetest.Local
	guests *guests.Guests
}

func run(t *testing.T, do func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{T: t, store: storetest.New(t)}
		w.guests = guests.New(w.store, slog.New(slog.NewTextHandler(t.Output(), nil)))
		w.network("front", func(n *object.Network) { n.Spec.Attachable = true })
		w.network("back", func(*object.Network) {})
		w.network("mesh", func(n *object.Network) { n.Spec.Attachable, n.Spec.Ingress = true, true })
		w.network("leaving", func(n *object.Network) { n.Spec.Attachable, n.PendingDelete = true, true })
		do(w)
	})
}

func (w *world) network(name string, change func(*object.Network)) {
	w.store.Write(w.T, func(tx *store.Tx) {
		n := &object.Network{}
		n.ID, n.Spec.Name = "id-of-"+name, name
		change(n)
		tx.Create(n)
	})
}

func request(id byte) *wire.GuestRequest {
	return &wire.GuestRequest{
		ID: strings.Repeat(string(id), 25), ContainerID: strings.Repeat("c", 64), Name: "box", Network: "front", Aliases: []string{"www"},
	}
}

// give does the allocator's part as soon as there is a guest.
func (w *world) give(id string, why string) {
	var after uint64
	for {
		ch := w.store.Since(after)
		after = ch.Snapshot.Index
		if g, ok := ch.Snapshot.Guests.Get(id); ok {
			g = g.Clone().(*object.Guest)
			g.Problem = why
			if why == "" {
				g.Network.Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.1.5/24")}
			}
			w.store.Write(w.T, func(tx *store.Tx) { tx.Update(g) })
			return
		}
		<-ch.News
	}
}

func (w *world) count() int { return w.store.Snapshot().Guests.Len() }

func TestAttach_AnswersWithThePlace(t *testing.T) {
	run(t, func(w *world) {
		r := request('a')
		go w.give(r.ID, "")
		p, err := w.guests.Attach(w.Context(), "n1", r)
		if err != nil || p.Network != "id-of-front" || p.NetworkName != "front" || p.Addresses[0].String() != "10.0.1.5/24" {
			w.Fatalf("got %+v, %v", p, err)
		}
		g, _ := w.store.Snapshot().Guests.Get(r.ID)
		if g.NodeID != "n1" || g.ContainerID != r.ContainerID || g.Name != "box" || g.Network.ID != p.Network || !slices.Equal(g.Network.Aliases, r.Aliases) {
			w.Errorf("stored %+v", g)
		}
		// Once more, as after a lost answer; and by another node.
		if again, err := w.guests.Attach(w.Context(), "n1", r); err != nil || again.Addresses[0] != p.Addresses[0] || w.count() != 1 {
			w.Errorf("asked again: %+v, %v, %d guests", again, err, w.count())
		}
		if _, err := w.guests.Attach(w.Context(), "n2", r); !errdefs.IsPermissionDenied(err) {
			w.Errorf("another node's guest: %v", err)
		}
		// By its ID, too.
		r = request('b')
		r.Network = "id-of-front"
		go w.give(r.ID, "")
		if _, err := w.guests.Attach(w.Context(), "n1", r); err != nil {
			w.Errorf("by ID: %v", err)
		}
	})
}

func TestAttach_RefusesInDockersWords(t *testing.T) {
	run(t, func(w *world) {
		for network, want := range map[string]struct {
			text string
			is   func(error) bool
		}{
			"nope":    {"network nope not found", errdefs.IsNotFound},
			"leaving": {"network leaving not found", errdefs.IsNotFound},
			"back":    {"network back not manually attachable", errdefs.IsPermissionDenied},
			"mesh":    {"network mesh not manually attachable", errdefs.IsPermissionDenied},
		} {
			r := request('a')
			r.Network = network
			if _, err := w.guests.Attach(w.Context(), "n1", r); !want.is(err) || err.Error() != want.text {
				w.Errorf("%s: %v", network, err)
			}
		}
		if _, err := w.guests.Attach(w.Context(), "n1", &wire.GuestRequest{}); !errdefs.IsInvalidArgument(err) {
			w.Errorf("an empty request: %v", err)
		}
		if w.count() != 0 {
			w.Errorf("%d guests were left", w.count())
		}
	})
}

const attaching = "attaching to network failed, make sure your network options are correct and check manager logs: "

func TestAttach_GivesUp(t *testing.T) {
	for _, tt := range []struct {
		name, problem, want string
		after               time.Duration
	}{
		{"when nobody allocates", "", "context deadline exceeded", 20 * time.Second},
		{"when there is no address", "no address is free in network front (10.0.1.0/24)", "no address is free in network front (10.0.1.0/24)", 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			run(t, func(w *world) {
				r := request('a')
				if tt.problem != "" {
					go w.give(r.ID, tt.problem)
				}
				began := time.Now()
				_, err := w.guests.Attach(w.Context(), "n1", r)
				if !errdefs.IsResourceExhausted(err) || err.Error() != attaching+tt.want || time.Since(began) != tt.after {
					w.Errorf("after %v: %v", time.Since(began), err)
				}
				if w.count() != 0 {
					w.Error("the guest was left")
				}
			})
		})
	}
}

// What another gives up while the node waits will do.
func TestAttach_TakesWhatIsFreedMeanwhile(t *testing.T) {
	run(t, func(w *world) {
		r := request('a')
		go func() { // ends before Attach does
			w.give(r.ID, "address 10.0.1.5 is already in use on network front")
			time.Sleep(time.Second)
			w.give(r.ID, "")
		}()
		if _, err := w.guests.Attach(w.Context(), "n1", r); err != nil {
			w.Error(err)
		}
	})
}

func TestAttach_EndsWithTheCaller(t *testing.T) {
	run(t, func(w *world) {
		ctx, cancel := context.WithTimeout(w.Context(), time.Second)
		defer cancel()
		if _, err := w.guests.Attach(ctx, "n1", request('a')); err == nil {
			w.Error("it got a place")
		}
		if w.count() != 0 {
			w.Error("the guest was left")
		}
	})
}

func TestRelease_IsOfTheNodesOwn(t *testing.T) {
	run(t, func(w *world) {
		for i, node := range []string{"n1", "n1", "n2"} {
			r := request(byte('a' + i))
			go w.give(r.ID, "")
			if _, err := w.guests.Attach(w.Context(), node, r); err != nil {
				w.Fatal(err)
			}
		}
		a, b, c := request('a').ID, request('b').ID, request('c').ID
		if l := w.guests.List("n1"); !slices.Equal(l.IDs, []string{a, b}) {
			w.Errorf("n1 has %v", l.IDs)
		}
		if err := w.guests.Release(w.Context(), "n1", &wire.GuestRelease{IDs: []string{a, c, "unknown"}}); err != nil {
			w.Fatal(err)
		}
		if l1, l2 := w.guests.List("n1"), w.guests.List("n2"); !slices.Equal(l1.IDs, []string{b}) || !slices.Equal(l2.IDs, []string{c}) {
			w.Errorf("left are %v, %v", l1.IDs, l2.IDs)
		}
	})
}

// contended is a store in which the allocator is always quicker.
type contended struct {
	*storetest.Local
	left int
}

func (c *contended) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	if c.left--; c.left >= 0 {
		return 0, store.ErrSequence
	}
	return c.Local.Propose(ctx, tx)
}

func TestRelease_TriesAgain(t *testing.T) {
	run(t, func(w *world) {
		r := request('a')
		go w.give(r.ID, "")
		if _, err := w.guests.Attach(w.Context(), "n1", r); err != nil {
			w.Fatal(err)
		}
		s := &contended{Local: w.store, left: 1000}
		g := guests.New(s, slog.New(slog.DiscardHandler))
		if err := g.Release(w.Context(), "n1", &wire.GuestRelease{IDs: []string{r.ID}}); !errdefs.IsUnavailable(err) || errors.Is(err, store.ErrSequence) {
			w.Errorf("for ever: %v", err)
		}
		s.left = 3
		if err := g.Release(w.Context(), "n1", &wire.GuestRelease{IDs: []string{r.ID}}); err != nil || w.count() != 0 {
			w.Errorf("after a while: %v, %d left", err, w.count())
		}
	})
}

func TestAttach_ANodeHasNotMoreThanItsShare(t *testing.T) {
	run(t, func(w *world) {
		w.store.Write(w.T, func(tx *store.Tx) {
			for range wire.MaxGuests {
				tx.Create(&object.Guest{ID: object.NewID(), NodeID: "n1", Network: object.TaskNetwork{ID: "id-of-front"}})
			}
		})
		if _, err := w.guests.Attach(w.Context(), "n1", request('a')); !errdefs.IsResourceExhausted(err) {
			w.Errorf("one more: %v", err)
		}
		r := request('b')
		go w.give(r.ID, "")
		if _, err := w.guests.Attach(w.Context(), "n2", r); err != nil {
			w.Errorf("another node: %v", err)
		}
	})
}
