package guests_test

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/guests"
	"skep/appliance/wire"
	"skep/exec/containers"
	"skep/store/object"
)

// managers are a leader's memory of guests.
type managers struct {
	mu    sync.Mutex
	known map[string]string // network by guest
	fail  error             // of all questions
	lost  error             // of answers: what was asked for is done
}

func (m *managers) away(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *managers) lose(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lost = err
}

// list is what is known.
func (m *managers) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Sorted(maps.Keys(m.known))
}

func (m *managers) AttachGuest(_ context.Context, r *wire.GuestRequest) (*wire.GuestReply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return nil, m.fail
	}
	m.known[r.ID] = r.Network
	if m.lost != nil {
		return nil, m.lost
	}
	return &wire.GuestReply{Network: "id-of-" + r.Network, NetworkName: r.Network, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.1.5/24")}}, nil
}

func (m *managers) ListGuests(context.Context) (*wire.GuestList, error) {
	l := &wire.GuestList{IDs: m.list()}
	m.mu.Lock()
	defer m.mu.Unlock()
	return l, m.fail
}

func (m *managers) ReleaseGuests(_ context.Context, r *wire.GuestRelease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return m.fail
	}
	for _, id := range r.IDs {
		delete(m.known, id)
	}
	return nil
}

var (
	errAway = object.Errorf(errdefs.ErrUnavailable, "no manager answers")
	errNone = object.Errorf(errdefs.ErrNotFound, "This node is not part of a swarm")
)

func run(t *testing.T, do func(t *testing.T, m *managers, c *guests.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m := &managers{known: map[string]string{}}
		c := guests.NewClient(guests.Config{
			Managers: func() guests.Managers { return m }, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		do(t, m, func() *guests.Client {
			go func() { done <- c.Run(ctx) }() // waited for below
			return c
		}())
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func box(n byte) containers.GuestRequest {
	return containers.GuestRequest{ContainerID: strings.Repeat(string(n), 64), Name: "box", Network: "front", Aliases: []string{"www"}}
}

func attach(t *testing.T, c *guests.Client) object.Overlay {
	t.Helper()
	o, err := c.Attach(t.Context(), box('a'))
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func TestClient_HoldsAPlaceUntilItsRelease(t *testing.T) {
	run(t, func(t *testing.T, m *managers, c *guests.Client) { //nolint:thelper // the body of the test
		o := attach(t, c)
		if o.Network != "id-of-front" || o.Name != "front" || !slices.Equal(m.list(), []string{o.Task}) || o.Addresses[0].String() != "10.0.1.5/24" || !slices.Equal(o.Aliases, []string{"www"}) {
			t.Errorf("got %+v; known are %v", o, m.list())
		}
		time.Sleep(time.Hour) // it looks for strays meanwhile
		if len(m.list()) != 1 {
			t.Error("a place in use was given back")
		}
		c.Release(box('a').ContainerID)
		c.Release("unknown")
		synctest.Wait()
		if len(m.list()) != 0 {
			t.Errorf("known are %v", m.list())
		}
	})
}

// A container that starts again does not lose its new place to the release of
// the old one.
func TestClient_ANewPlaceIsNotTheOldOne(t *testing.T) {
	run(t, func(t *testing.T, m *managers, c *guests.Client) { //nolint:thelper // the body of the test
		old := attach(t, c)
		m.away(errAway)
		c.Release(box('a').ContainerID)
		synctest.Wait()
		m.away(nil)
		o := attach(t, c)
		time.Sleep(time.Minute)
		if o.Task == old.Task || !slices.Equal(m.list(), []string{o.Task}) {
			t.Errorf("had %s, has %s, known are %v", old.Task, o.Task, m.list())
		}
	})
}

func TestClient_WaitsForAManager(t *testing.T) {
	run(t, func(t *testing.T, m *managers, c *guests.Client) { //nolint:thelper // the body of the test
		m.away(errAway)
		go func() { // before the deadline
			time.Sleep(10 * time.Second)
			m.away(nil)
		}()
		began := time.Now()
		attach(t, c)
		if took := time.Since(began); took < 10*time.Second || took > 25*time.Second {
			t.Errorf("took %v", took)
		}
		m.away(errAway)
		began = time.Now()
		if _, err := c.Attach(t.Context(), box('b')); !errdefs.IsUnavailable(err) || time.Since(began) > 26*time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
	})
}

func TestClient_WithoutASwarmThereIsNoSuchNetwork(t *testing.T) {
	run(t, func(t *testing.T, m *managers, c *guests.Client) { //nolint:thelper // the body of the test
		m.away(errNone)
		if _, err := c.Attach(t.Context(), box('a')); !errdefs.IsNotFound(err) || err.Error() != "network front not found" {
			t.Errorf("got %v", err)
		}
	})
}

func TestClient_GivesBackWhatItNeverHeardOf(t *testing.T) {
	run(t, func(t *testing.T, m *managers, c *guests.Client) { //nolint:thelper // the body of the test
		m.lose(object.Errorf(errdefs.ErrPermissionDenied, "revoked meanwhile"))
		if _, err := c.Attach(t.Context(), box('a')); err == nil {
			t.Fatal("it got a place")
		}
		synctest.Wait()
		if len(m.list()) != 0 {
			t.Errorf("known are %v", m.list())
		}
	})
}

// The node starts again: what containers still use is kept, the rest is not.
func TestClient_Retain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &managers{known: map[string]string{"used": "front", "stray": "front"}, fail: errAway}
		var present atomic.Bool
		c := guests.NewClient(guests.Config{Managers: func() guests.Managers {
			if present.Load() {
				return m
			}
			return nil
		}, Logger: slog.New(slog.DiscardHandler)})
		c.Retain(map[string][]string{"c1": {"used"}})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- c.Run(ctx) }() // waited for below
		time.Sleep(time.Minute)
		present.Store(true)
		time.Sleep(time.Minute)
		if len(m.list()) != 2 {
			t.Errorf("given back before a manager answered: %v", m.list())
		}
		m.away(nil)
		time.Sleep(time.Minute)
		if !slices.Equal(m.list(), []string{"used"}) {
			t.Errorf("known are %v", m.list())
		}
		c.Release("c1")
		synctest.Wait()
		if len(m.list()) != 0 {
			t.Errorf("known are %v", m.list())
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
