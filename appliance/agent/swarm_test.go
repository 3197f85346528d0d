package agent_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/wire"
)

// part is the node's part in a swarm, as the agent was told and tells it.
type part struct {
	mu      sync.Mutex
	told    []wire.Swarm
	invited []string
	member  *wire.Member
	hold    chan struct{} // closed when calls of swarm may return
}

func (p *part) swarm(ctx context.Context, s wire.Swarm) error {
	p.mu.Lock()
	p.told = append(p.told, s)
	p.mu.Unlock()
	select {
	case <-p.hold:
		return errors.New("an error of the node's own")
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *part) configure(cfg *agent.Config) {
	cfg.Swarm = p.swarm
	cfg.Invited = func(ctx context.Context, stream string) {
		p.mu.Lock()
		p.invited = append(p.invited, stream)
		p.mu.Unlock()
		<-ctx.Done()
	}
	cfg.Member = func() *wire.Member {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.member
	}
	cfg.Holdings = func(ctx context.Context, send func(*wire.Holdings) error) error {
		if err := send(&wire.Holdings{Complete: true}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
}

func TestAgent_TakesPartInTheSwarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &part{hold: make(chan struct{})}
		m, a, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, p.configure)
		c := m.welcome()
		if got := m.receive(c); got.Holdings == nil || !got.Holdings.Complete {
			t.Fatalf("after the welcome: got %+v", got)
		}
		// A slow taker gets the first and the last, and does not stop the session.
		for v := range uint64(4) {
			m.send(c, &wire.Message{Swarm: &wire.Swarm{Role: swarm.NodeRoleWorker, GossipVersion: v}})
			synctest.Wait()
		}
		close(p.hold)
		synctest.Wait()
		versions := func() (out []uint64) {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, s := range p.told {
				out = append(out, s.GossipVersion)
			}
			return out
		}
		if diff := cmp.Diff([]uint64{0, 3}, versions()); diff != "" {
			t.Errorf("told of the swarm (-want +got):\n%s", diff)
		}

		p.mu.Lock()
		p.member = &wire.Member{RaftID: "r", Addr: "10.0.0.1:2377"}
		p.mu.Unlock()
		a.Refresh()
		if got := m.receive(c); got.Describe == nil || got.Describe.Member == nil || got.Describe.Member.RaftID != "r" {
			t.Errorf("after a change: got %+v", got)
		}
		a.Refresh() // and nothing changed

		// Streams outlive the session; there is an end to how many.
		for i := range 300 {
			m.send(c, &wire.Message{Invite: &wire.Invite{Stream: string(rune('a' + i%26))}})
		}
		synctest.Wait()
		p.mu.Lock()
		if n := len(p.invited); n != 256 || !slices.Contains(p.invited, "z") {
			t.Errorf("%d streams of 300", n)
		}
		p.mu.Unlock()
		m.send(c, &wire.Message{Refusal: &wire.Refusal{Text: "go away"}})
		c = <-m.dials
		if hello := m.receive(c); hello.Hello == nil || hello.Hello.Member == nil || hello.Hello.Member.Addr != "10.0.0.1:2377" {
			t.Errorf("the next session begins with %+v", hello)
		}
		time.Sleep(time.Second)
		stop()
	})
}

func TestAgent_SaysWhichKeysItHasAndLearnsWhereTheNodesAre(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var got [][]wire.Peer
		fails := true
		m, _, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, func(cfg *agent.Config) {
			cfg.Swarm = func(context.Context, wire.Swarm) error {
				mu.Lock()
				defer mu.Unlock()
				if fails {
					return errors.New("not now")
				}
				return nil
			}
			cfg.Nodes = func(all []wire.Peer) {
				mu.Lock()
				defer mu.Unlock()
				got = append(got, all)
			}
		})
		c := m.welcome()
		beat := func(want uint64) {
			t.Helper()
			m.send(c, &wire.Message{Beat: &wire.Beat{Period: time.Second}})
			for {
				if b := m.receive(c).Beat; b != nil {
					if b.Keys != want {
						t.Errorf("keys: got version %d, want %d", b.Keys, want)
					}
					return
				}
			}
		}
		tell := func(version uint64) {
			m.send(c, &wire.Message{Swarm: &wire.Swarm{GossipVersion: version}})
			synctest.Wait()
		}
		beat(0)
		tell(7)
		beat(0)
		mu.Lock()
		fails = false
		mu.Unlock()
		tell(8)
		beat(8)

		at := func(id, addr string) wire.Peer { return wire.Peer{NodeID: id, Addr: addr} }
		for _, n := range []*wire.Nodes{
			{Complete: true, More: true, Items: []wire.Peer{at("b", "1")}},
			{Items: []wire.Peer{at("a", "2")}},
			{Items: []wire.Peer{at("c", "3"), at("a", "4")}, Gone: []string{"b"}},
			{Complete: true},
		} {
			m.send(c, &wire.Message{Nodes: n})
			synctest.Wait()
		}
		mu.Lock()
		want := [][]wire.Peer{{at("a", "2"), at("b", "1")}, {at("a", "4"), at("c", "3")}, {}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("nodes (-want +got):\n%s", diff)
		}
		mu.Unlock()
		stop()
	})
}

func TestAgent_SaysThatItLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, a, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, func(c *agent.Config) {
			c.DataPath = func(context.Context) string { return "10.9.0.1" }
		})
		c := m.welcome()
		left := make(chan struct{})
		go func() { // waited for below
			defer close(left)
			a.Leave(t.Context())
		}()
		if got := m.receive(c); got.Bye == nil {
			t.Fatalf("got %+v, want a farewell", got)
		}
		synctest.Wait()
		select {
		case <-left:
			t.Error("it does not wait for the manager")
		default:
		}
		m.send(c, &wire.Message{Refusal: &wire.Refusal{Text: "the session is over"}})
		<-left
		// Nobody hears it, and it does not wait for ever.
		stop()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		a.Leave(ctx)
	})
}

func TestAgent_TellsWhyItIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		why := make(chan error, 10)
		m, _, stop := startWith(t, filepath.Join(t.TempDir(), "tasks"), &runtime{}, func(c *agent.Config) {
			c.DataPath = func(context.Context) string { return "10.9.0.1" }
			c.Refused = func(_ context.Context, err error) { why <- err }
		})
		var instances []string
		for _, kind := range []wire.Kind{wire.Unavailable, wire.Denied} {
			c := <-m.dials
			hello := m.receive(c).Hello
			if hello == nil || hello.DataPath != "10.9.0.1" || hello.Instance == "" {
				t.Fatalf("it begins with %+v", hello)
			}
			instances = append(instances, hello.Instance)
			m.send(c, &wire.Message{Refusal: &wire.Refusal{Kind: kind, Text: string(kind)}})
		}
		if err := <-why; err.Error() != string(wire.Denied) {
			t.Errorf("it tells %v", err)
		}
		if instances[0] != instances[1] {
			t.Errorf("the process calls itself %q", instances)
		}
		stop()
	})
}
