package ca_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store/object"
)

func TestRenew_GivesANewKeyTheRoleThatTheStoreSays(t *testing.T) {
	s := newRealm(t, ca.Config{})
	m := s.join(s.cluster().JoinTokens.Worker)
	for _, tt := range []struct {
		name string
		do   func(n *object.Node)
		role string
	}{
		{"as it is", func(*object.Node) {}, pki.Worker},
		{"promoted", func(n *object.Node) { n.Spec.Role = swarm.NodeRoleManager }, pki.Manager},
		{"being demoted", func(n *object.Node) {
			n.Spec.Role, n.ManagerStatus = swarm.NodeRoleWorker, &swarm.ManagerStatus{Addr: "a"}
		}, pki.Manager},
		{"demoted", func(n *object.Node) { n.ManagerStatus = nil }, pki.Worker},
	} {
		s.changeNode(m.id, tt.do)
		was := m.who(t)
		if err := s.renew(m); err != nil {
			t.Fatal(err)
		}
		n := s.node(m.id)
		want := pki.Node{ID: m.id, Cluster: cluster, Role: tt.role, Generation: n.Version.Index}
		if got := m.who(t); got != want || got.Generation <= was.Generation {
			t.Errorf("%s: got %+v, want %+v", tt.name, got, want)
		}
		if (n.CertRole == swarm.NodeRoleManager) != (tt.role == pki.Manager) || n.Generation != want.Generation || string(n.KeyHash) != hashOf(t, m.key) {
			t.Errorf("%s: the store has %s of generation %d", tt.name, n.CertRole, n.Generation)
		}
		if _, role, _ := ca.Swarm(s.store.Snapshot(), n); role != n.CertRole {
			t.Errorf("%s: the node is told to be a %s", tt.name, role)
		}
	}
}

func TestRenew_IsOnlyForNodesThatAreThere(t *testing.T) {
	s := newRealm(t, ca.Config{})
	a, b, gone := s.join(s.cluster().JoinTokens.Worker), s.join(s.cluster().JoinTokens.Worker), pki.Node{ID: "gone", Cluster: cluster, Role: pki.Worker}
	foreign := a.who(t)
	foreign.Cluster = "c2"
	revoked := b.who(t)
	s.changeNode(b.id, func(n *object.Node) { n.MinGeneration = s.store.Snapshot().Index + 1 })
	for name, tt := range map[string]struct {
		from pki.Node
		text string
	}{
		"removed":       {gone, "Permission denied: node gone was removed from swarm"},
		"another swarm": {foreign, "is of another swarm"},
		"revoked":       {revoked, "was revoked"},
	} {
		csr, _ := newCSR(t)
		if _, err := s.ca.Renew(t.Context(), tt.from, &wire.RenewRequest{CSR: csr}); !errdefs.IsPermissionDenied(err) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestRenew_AskedAgainIsTheSameAnswer(t *testing.T) {
	s := newRealm(t, ca.Config{})
	m, other := s.join(s.cluster().JoinTokens.Worker), s.join(s.cluster().JoinTokens.Worker)
	csr, key := newCSR(t)
	from := m.who(t)
	for range 2 {
		r, err := s.ca.Renew(t.Context(), from, &wire.RenewRequest{CSR: csr})
		if err != nil {
			t.Fatal(err)
		}
		m.chain, m.key = r.Certificate, key
	}
	if got := s.node(m.id); got.Version.Index != got.Generation {
		t.Errorf("the answer that was lost was written twice: %d, %d", got.Version.Index, got.Generation)
	}
	if _, err := s.ca.Renew(t.Context(), m.who(t), &wire.RenewRequest{CSR: csr}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("renewed without a new key: %v", err)
	}
	if _, err := s.ca.Renew(t.Context(), other.who(t), &wire.RenewRequest{CSR: csr}); !errdefs.IsAlreadyExists(err) {
		t.Errorf("another node's key: %v", err)
	}
}

// TestRenew_Race: renewals and changes of the same node do not lose each other.
func TestRenew_Race(t *testing.T) {
	s := newRealm(t, ca.Config{})
	m := s.join(s.cluster().JoinTokens.Worker)
	from := m.who(t)
	tries := 0
	busy := &meddler{Local: s.store, before: func() {
		if tries++; tries < 5 {
			s.changeNode(m.id, func(n *object.Node) { n.Status.Message += "x" })
		}
	}}
	s.ca = ca.New(ca.Config{Store: busy, Logger: quiet()})
	if err := s.renew(m); err != nil {
		t.Fatal(err)
	}
	if n := s.node(m.id); n.Status.Message != "xxxx" || m.who(t).Generation != n.Version.Index || n.Generation > n.Version.Index {
		t.Errorf("got %q, generation %d at %d", n.Status.Message, n.Generation, n.Version.Index)
	}
	s.ca = ca.New(ca.Config{Store: s.store, Logger: quiet()})
	var all sync.WaitGroup
	for range 8 {
		csr, _ := newCSR(t)
		all.Go(func() {
			if _, err := s.ca.Renew(t.Context(), from, &wire.RenewRequest{CSR: csr}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// asked is what a node says to be enrolled again.
func asked(t *testing.T, m *member) *wire.ReenrolRequest {
	t.Helper()
	csr, _ := newCSR(t)
	sig, err := pki.Endorse(csr, m.key)
	if err != nil {
		t.Fatal(err)
	}
	return &wire.ReenrolRequest{CSR: csr, Chain: m.chain, Signature: sig}
}

func TestReenrol_LetsExpiredNodesBackIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRealm(t, ca.Config{})
		s.change(func(c *object.Cluster) { c.Spec.CAConfig.NodeCertExpiry = time.Hour })
		w, m := s.join(s.cluster().JoinTokens.Worker), s.join(s.cluster().JoinTokens.Manager)
		for _, x := range []*member{w, m} {
			req := asked(t, x)
			if _, err := s.ca.Reenrol(t.Context(), somewhere, req); err == nil || !strings.Contains(err.Error(), "still valid") {
				t.Errorf("too early: %v", err)
			}
		}
		time.Sleep(24 * time.Hour)
		for _, x := range []*member{w, m} {
			req := asked(t, x)
			for range 2 { // the first answer is lost
				r, err := s.ca.Reenrol(t.Context(), somewhere, req)
				if err != nil {
					t.Fatal(err)
				}
				if r.NodeID != x.id || r.ClusterID != cluster || r.Epoch != 3 {
					t.Errorf("got %+v", r)
				}
				got := (&member{chain: r.Certificate, roots: r.Roots}).who(t)
				if got.ID != x.id || got.Generation != s.node(x.id).Generation && got.Generation != s.store.Snapshot().Index {
					t.Errorf("got %+v", got)
				}
			}
		}
		// The former certificate of a manager is not good for another key now;
		// that of a worker is.
		req := asked(t, m)
		if _, err := s.ca.Reenrol(t.Context(), somewhere, req); err == nil || !strings.Contains(err.Error(), "not the last certificate") {
			t.Errorf("an older certificate of a manager: %v", err)
		}
		time.Sleep(time.Minute)
		req = asked(t, w)
		if _, err := s.ca.Reenrol(t.Context(), somewhere, req); err != nil {
			t.Errorf("an older certificate of a worker: %v", err)
		}
		time.Sleep(31 * 24 * time.Hour)
		req = asked(t, w)
		if _, err := s.ca.Reenrol(t.Context(), somewhere, req); err == nil || !strings.Contains(err.Error(), "more than 30 days ago") {
			t.Errorf("after a long time: %v", err)
		}
	})
}

func TestReenrol_RefusesEverybodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRealm(t, ca.Config{})
		s.change(func(c *object.Cluster) { c.Spec.CAConfig.NodeCertExpiry = time.Hour })
		w, v, gone := s.join(s.cluster().JoinTokens.Worker), s.join(s.cluster().JoinTokens.Worker), s.join(s.cluster().JoinTokens.Worker)
		far := newRealm(t, ca.Config{})
		alien := far.join(far.cluster().JoinTokens.Worker)
		time.Sleep(2 * time.Hour)
		s.remove(gone.id)
		s.changeNode(v.id, func(n *object.Node) { n.MinGeneration = s.store.Snapshot().Index + 1 })
		good := asked(t, w)
		bad := map[string]*wire.ReenrolRequest{
			"nothing":         {},
			"no signature":    {CSR: good.CSR, Chain: good.Chain},
			"another request": {CSR: asked(t, w).CSR, Chain: good.Chain, Signature: good.Signature},
			"another's key":   {CSR: good.CSR, Chain: v.chain, Signature: good.Signature},
			"removed":         asked(t, gone),
			"revoked":         asked(t, v),
			"another swarm":   asked(t, alien),
			"long chain":      {CSR: good.CSR, Chain: bytes.Repeat(good.Chain, 17), Signature: good.Signature},
			"clock":           {CSR: good.CSR, Chain: good.Chain, Signature: good.Signature, Clock: time.Now().Add(-2 * time.Hour)},
		}
		i := 0
		for name, req := range bad {
			i++
			_, err := s.ca.Reenrol(t.Context(), netip.AddrFrom4([4]byte{10, 1, byte(i), 1}), req)
			if !errdefs.IsPermissionDenied(err) && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: got %v", name, err)
			}
		}
		if _, err := s.ca.Reenrol(t.Context(), somewhere, good); err != nil {
			t.Errorf("the good one: %v", err)
		}
	})
}

func TestEnter_EndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newRealm(t, ca.Config{})
		hold := make(chan struct{})
		s.ca = ca.New(ca.Config{Store: &meddler{Local: s.store, before: func() { <-hold }}, Logger: quiet()})
		csr, _ := newCSR(t)
		req := &wire.JoinRequest{Token: s.cluster().JoinTokens.Worker, CSR: csr}
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := s.ca.Join(t.Context(), somewhere, req); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.ca.Join(ctx, somewhere, req); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		close(hold)
		all.Wait()
	})
}
