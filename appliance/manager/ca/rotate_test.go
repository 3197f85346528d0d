package ca_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

type renewRequest = wire.RenewRequest

// bubble runs a test of a fleet whose authority leads.
func bubble(t *testing.T, managers, workers int, scene func(f *fleet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, newRealm(t, ca.Config{}), managers, workers)
		ctx, cancel := context.WithCancel(t.Context())
		defer f.all.Wait()
		defer cancel()
		f.ctx = ctx
		scene(f)
	})
}

func TestRotation_ChangesNothingWhenNobodyAsks(t *testing.T) {
	bubble(t, 1, 2, func(f *fleet) {
		t := f.t
		f.start()
		stop := f.lead(f.ca)
		synctest.Wait()
		before := f.store.Snapshot().Index
		time.Sleep(24 * time.Hour)
		if got := f.store.Snapshot().Index; got != before {
			t.Errorf("%d writes", got-before)
		}
		if err := stop(); err == nil {
			t.Error("ended without a reason")
		}
	})
}

func TestRotation_MakesANewRootTheOnlyOne(t *testing.T) {
	bubble(t, 3, 3, func(f *fleet) {
		t := f.t
		f.check = true
		ids := f.sorted()
		f.slow = func(id string) time.Duration { return time.Duration(slices.Index(ids, id)) * time.Second }
		f.start()
		f.lead(f.ca)
		old := f.cluster()
		f.rotate()
		f.reach(t, object.RotationIssue)
		for id, m := range f.members {
			if !strings.Contains(string(m.roots), string(f.cluster().RootCA.Rotation.Cert)) {
				t.Errorf("certificates of a root that %s does not know", id)
			}
		}
		took := f.settled(t, time.Minute)
		c := f.cluster()
		if string(c.RootCA.Cert) == string(old.RootCA.Cert) || string(c.RootCA.Key) == string(old.RootCA.Key) || c.RootCA.Forced != 1 {
			t.Error("the root is the old one")
		}
		if c.JoinTokens.Worker == old.JoinTokens.Worker || c.JoinTokens.Manager == old.JoinTokens.Manager {
			t.Error("old tokens are still good")
		}
		if len(c.RootCA.Retired) != 1 || string(c.RootCA.Retired[0].Cert) != string(old.RootCA.Cert) || took > 20*time.Second {
			t.Errorf("after %s: %d retired roots", took, len(c.RootCA.Retired))
		}
		time.Sleep(time.Minute)
		if of, others := f.issuers(); of != 6 || others != 0 {
			t.Errorf("%d certificates of the new root, %d others", of, others)
		}
		for id, m := range f.members {
			if string(m.roots) != string(c.RootCA.Cert) {
				t.Errorf("%s trusts something else", id)
			}
		}
		f.add(f.join(c.JoinTokens.Worker))
		time.Sleep(retirement + time.Hour)
		if c := f.cluster(); len(c.RootCA.Retired) != 0 {
			t.Error("a retired root is never forgotten")
		}
	})
}

const retirement = 30 * 24 * time.Hour

// TestRotation_AsksAFewAtATime: 30 nodes per 3 s.
func TestRotation_AsksAFewAtATime(t *testing.T) {
	bubble(t, 1, 99, func(f *fleet) {
		t := f.t
		f.start()
		f.lead(f.ca)
		f.rotate()
		f.settled(t, time.Minute)
		rounds := map[time.Time]int{}
		for _, at := range f.renewed {
			rounds[at]++
		}
		if len(rounds) != 4 {
			t.Errorf("%d rounds: %v", len(rounds), rounds)
		}
		for at, n := range rounds {
			if n > 30 {
				t.Errorf("%d nodes at %s", n, at)
			}
		}
		if d := f.renewed[len(f.renewed)-1].Sub(f.renewed[0]); d != 9*time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestRotation_WaitsForNobodyWhoIsAway(t *testing.T) {
	bubble(t, 1, 4, func(f *fleet) {
		t := f.t
		var ids []string
		for _, id := range f.sorted() {
			if id != "m0" {
				ids = append(ids, id)
			}
		}
		down, never, silent := ids[0], ids[1], ids[2]
		f.awake[down] = false
		f.changeNode(down, func(n *object.Node) { n.Status.State = swarm.NodeStateDown })
		f.awake[never] = false
		f.changeNode(never, func(n *object.Node) { n.Status.State, n.Description.TLSInfo = swarm.NodeStateUnknown, swarm.TLSInfo{} })
		f.start()
		f.lead(f.ca)
		f.rotate()
		if took := f.settled(t, time.Minute); took > 10*time.Second {
			t.Errorf("took %s with nodes away", took)
		}
		before := f.cluster().RootCA.Cert
		f.awake[silent] = false
		f.slow = func(id string) time.Duration {
			if id == silent {
				return 24 * time.Hour
			}
			return 0
		}
		f.rotate()
		if took := f.settled(t, time.Hour); took < 5*time.Minute || took > 20*time.Minute {
			t.Errorf("took %s with a silent node", took)
		}
		if string(f.cluster().RootCA.Cert) == string(before) {
			t.Error("the root is the old one")
		}
		time.Sleep(25 * time.Hour)
	})
}

// TestRotation_LetsThoseBackInWhoWereAway: a node that slept through two
// changes of root still believes the managers, and is enrolled again.
func TestRotation_LetsThoseBackInWhoWereAway(t *testing.T) {
	bubble(t, 1, 1, func(f *fleet) {
		t := f.t
		var away *member
		for id, m := range f.members {
			if id != "m0" {
				away = m
			}
		}
		f.awake[away.id] = false
		f.changeNode(away.id, func(n *object.Node) { n.Status.State = swarm.NodeStateDown })
		f.start()
		f.lead(f.ca)
		for range 2 {
			f.rotate()
			f.settled(t, time.Minute)
			synctest.Wait()
		}
		lead, _ := f.members["m0"].certificates(t)
		_, known := away.certificates(t)
		if _, err := pki.Verify(lead, known, time.Now()); err != nil {
			t.Errorf("the manager is not believed: %v", err)
		}
		r, err := f.ca.Reenrol(t.Context(), somewhere, asked(t, away))
		if err != nil {
			t.Fatal(err)
		}
		away.chain, away.roots = r.Certificate, r.Roots
		if string(r.Roots) != string(f.cluster().RootCA.Cert) || away.who(t).ID != away.id {
			t.Errorf("enrolled as %+v", r)
		}
	})
}

// TestRotation_Overlap: a change of root in the middle of another replaces it.
func TestRotation_Overlap(t *testing.T) {
	for _, at := range []object.RotationPhase{object.RotationTrust, object.RotationIssue} {
		bubble(t, 2, 3, func(f *fleet) {
			t := f.t
			f.check = true
			f.slow = func(string) time.Duration { return 700 * time.Millisecond }
			f.start()
			f.lead(f.ca)
			old := f.cluster()
			f.rotate()
			f.reach(t, at)
			first := f.cluster().RootCA.Rotation
			given, err := pki.NewRoot(time.Now())
			if err != nil {
				t.Fatal(err)
			}
			f.give(given)
			f.reach(t, object.RotationTrust)
			second := f.cluster().RootCA.Rotation
			if second.ID == first.ID {
				t.Fatal("the first change of root goes on")
			}
			if err := pki.CheckCross(second.Cross, given.Cert, f.rootOf(old.RootCA.Cert)); err != nil {
				t.Errorf("not signed by the original root: %v", err)
			}
			f.settled(t, time.Minute)
			synctest.Wait()
			c := f.cluster()
			of, others := f.issuers()
			if string(c.RootCA.Cert) != string(given.PEM()) || len(c.RootCA.Retired) != 1 || of != 5 || others != 0 || c.Spec.CAConfig.SigningCAKey != "" {
				t.Errorf("in %s: %d and %d certificates, %d retired roots", at, of, others, len(c.RootCA.Retired))
			}
		})
	}
}

// TestRotation_Abort: back to the root that was there before.
func TestRotation_Abort(t *testing.T) {
	for _, at := range []object.RotationPhase{object.RotationTrust, object.RotationIssue} {
		bubble(t, 2, 3, func(f *fleet) {
			t := f.t
			f.check = true
			f.slow = func(string) time.Duration { return 700 * time.Millisecond }
			f.start()
			f.lead(f.ca)
			old := f.cluster()
			root, err := pki.ParseRoot(old.RootCA.Cert, old.RootCA.Key)
			if err != nil {
				t.Fatal(err)
			}
			f.rotate()
			f.reach(t, at)
			time.Sleep(200 * time.Millisecond)
			f.give(root)
			f.settled(t, time.Minute)
			time.Sleep(time.Minute)
			c := f.cluster()
			of, others := f.issuers()
			if string(c.RootCA.Cert) != string(old.RootCA.Cert) || string(c.RootCA.Key) != string(old.RootCA.Key) ||
				c.JoinTokens != old.JoinTokens || len(c.RootCA.Retired) != 0 || of != 5 || others != 0 {
				t.Errorf("in %s: %d and %d certificates, %d retired roots", at, of, others, len(c.RootCA.Retired))
			}
		})
	}
}

// reach waits for a phase.
func (f *fleet) reach(t *testing.T, phase object.RotationPhase) {
	t.Helper()
	for range 100 {
		if rot := f.cluster().RootCA.Rotation; rot != nil && rot.Phase == phase && !f.cluster().RootDue() {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("never in phase %s", phase)
}

// TestRotation_SurvivesEveryCrash is SEC-CA: the leader crashes before or
// after each of the four commands, and another one goes on.
func TestRotation_SurvivesEveryCrash(t *testing.T) {
	seeds := 13
	if testing.Short() {
		seeds = 3
	}
	for edge := range 8 {
		t.Run(fmt.Sprintf("edge%d", edge), func(t *testing.T) {
			for seed := range seeds {
				crash(t, edge, uint64(seed))
			}
		})
	}
}

func crash(t *testing.T, edge int, seed uint64) {
	t.Helper()
	random := rand.New(rand.NewPCG(seed, uint64(edge)))
	bubble(t, 1+random.IntN(2), random.IntN(4), func(f *fleet) {
		t := f.t
		f.check = true
		delays := map[string]time.Duration{}
		for _, id := range f.sorted() {
			delays[id] = time.Duration(random.IntN(4000)) * time.Millisecond
		}
		f.slow = func(id string) time.Duration { return delays[id] }
		f.start()
		down := make(chan struct{})
		weak := ca.New(ca.Config{
			Store:  &frail{Local: f.store, at: edge / 2, after: edge%2 == 1, fail: func() { close(down) }},
			NodeID: "m0", Logger: quiet(),
		})
		stop := f.lead(weak)
		old := f.cluster()
		f.rotate()
		<-down
		if err := stop(); !errors.Is(err, errCrash) {
			t.Errorf("seed %d: ended with %v", seed, err)
		}
		if random.IntN(2) == 0 { // the new leader has not heard of anybody yet
			for _, id := range f.sorted() {
				f.changeNode(id, func(n *object.Node) { n.Status.State = swarm.NodeStateUnknown })
			}
		}
		time.Sleep(time.Duration(random.IntN(10)) * time.Second)
		if random.IntN(4) == 0 {
			f.rotate()
		}
		f.lead(f.ca)
		f.settled(t, 2*time.Minute)
		time.Sleep(time.Minute)
		c := f.cluster()
		of, others := f.issuers()
		if string(c.RootCA.Cert) == string(old.RootCA.Cert) || c.JoinTokens.Worker == old.JoinTokens.Worker ||
			c.RootCA.Forced != c.Spec.CAConfig.ForceRotate || of != len(f.members) || others != 0 {
			t.Errorf("seed %d: %d certificates of the new root, %d of others", seed, of, others)
		}
		if root, err := pki.ParseRoot(c.RootCA.Cert, c.RootCA.Key); err != nil || !strings.HasPrefix(root.Cert.Subject.CommonName, pki.RootName) {
			t.Errorf("seed %d: %v", seed, err)
		}
		f.add(f.join(c.JoinTokens.Manager))
	})
}

// TestRotation_WithNodesThatJoin: machines join by the old token in every
// phase, and trust what the rest trusts in the end.
func TestRotation_WithNodesThatJoin(t *testing.T) {
	bubble(t, 1, 3, func(f *fleet) {
		t := f.t
		f.check = true
		f.slow = func(string) time.Duration { return 2 * time.Second }
		f.start()
		f.lead(f.ca)
		f.rotate()
		for _, phase := range []object.RotationPhase{object.RotationTrust, object.RotationIssue} {
			f.reach(t, phase)
			m := f.join(f.cluster().JoinTokens.Worker)
			f.add(m)
			f.all.Go(func() { f.follow(m) })
		}
		f.settled(t, time.Minute)
		time.Sleep(time.Minute)
		if of, others := f.issuers(); of != 6 || others != 0 {
			t.Errorf("%d certificates of the new root, %d of others", of, others)
		}
	})
}

// TestRenewals_KeepASwarmForADay is SEC-ROT: certificates of an hour, six
// nodes, a day.
func TestRenewals_KeepASwarmForADay(t *testing.T) {
	bubble(t, 3, 3, func(f *fleet) {
		t := f.t
		f.change(func(c *object.Cluster) { c.Spec.CAConfig.NodeCertExpiry = time.Hour })
		f.check = true
		end := time.Now().Add(24 * time.Hour)
		random := rand.New(rand.NewPCG(1, 2))
		renewals := map[string]int{}
		for _, id := range f.sorted() {
			if err := f.renew(f.members[id]); err != nil {
				t.Fatal(err)
			}
		}
		failures, fraction := map[string]int{}, map[string]float64{}
		for now := time.Now(); now.Before(end); now = time.Now() {
			next := end
			for _, id := range f.sorted() {
				m := f.members[id]
				chain, _ := m.certificates(t)
				if at := pki.Next(chain[0], now, fraction[id], 0); at.After(now) {
					next = minTime(next, at)
					continue
				}
				if failures[id] < 3 && random.IntN(5) == 0 { // the leader is away
					failures[id]++
					next = minTime(next, pki.Next(chain[0], now, fraction[id], failures[id]))
					continue
				}
				if err := f.renew(m); err != nil {
					t.Fatal(err)
				}
				failures[id], fraction[id] = 0, random.Float64()
				renewals[id]++
				next = now
			}
			f.understand()
			time.Sleep(time.Until(next) + time.Millisecond)
		}
		for _, id := range f.sorted() {
			if n := renewals[id]; n < 29 || n > 48 {
				t.Errorf("%s renewed its certificate %d times", id, n)
			}
		}
	})
}

func minTime(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
