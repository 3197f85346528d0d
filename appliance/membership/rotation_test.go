package membership_test

import (
	"errors"
	"testing"

	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// rotate asks for a new root.
func (n *node) rotate() {
	n.t.Helper()
	for {
		p, err := n.Store(n.t.Context())
		if err != nil {
			n.t.Fatal(err)
		}
		tx := store.Begin(p.Snapshot())
		c := p.Snapshot().Cluster().Clone().(*object.Cluster)
		c.Spec.CAConfig.ForceRotate++
		tx.Update(c)
		if _, err = p.Propose(n.t.Context(), tx); err == nil {
			return
		}
		if !errors.Is(err, store.ErrSequence) {
			n.t.Fatal(err)
		}
	}
}

// trusts tells whether a node has the swarm's root, and a certificate of it.
func (w *world) trusts(at *node, nodes ...*node) func() bool {
	return func() bool {
		s, err := at.Replica()
		if err != nil {
			return false
		}
		c := s.Cluster()
		if c.RootCA.Rotation != nil || c.RootDue() {
			return false
		}
		for _, n := range nodes {
			st := n.keys.State()
			chain, err := pki.ParseChain(st.Certificate)
			if err != nil {
				w.Fatal(err)
			}
			roots, err := pki.ParseChain(c.RootCA.Cert)
			if err != nil {
				w.Fatal(err)
			}
			if _, key := pki.Issuer(chain, roots); key == nil || string(st.Roots) != string(c.RootCA.Cert) {
				return false
			}
		}
		return true
	}
}

func TestSwarm_ChangesItsRoot(t *testing.T) {
	w := &world{T: t}
	m1, m2, w1, w2 := w.add("m1"), w.add("m2"), w.add("w1"), w.add("w2")
	m1.init()
	tokens := m1.tokens()
	m2.join(tokens.Manager, m1)
	w1.join(tokens.Worker, m1)
	w2.join(tokens.Worker, m1)
	formed := []string{"m1 manager ready reachable leader", "m2 manager ready reachable", "w1 worker ready", "w2 worker ready"}
	w.until("formed", m1.sees(formed...))
	m1.rotate()
	w.until("changed", w.trusts(m1, m1, m2, w1, w2))
	w.until("all are there", m1.sees(formed...))
	if now := m1.tokens(); now.Worker == tokens.Worker || now.Manager == tokens.Manager {
		t.Error("the tokens are the old ones")
	}
	w2.shut()
	w.until("one is away", m1.sees(formed[0], formed[1], formed[2], "w2 worker down"))
	m1.rotate()
	w.until("changed again", w.trusts(m1, m1, m2, w1))
	w2.start()
	w.until("it came back", m1.sees(formed...))
	w.until("as one of the others", w.trusts(m1, m1, m2, w1, w2))
}
