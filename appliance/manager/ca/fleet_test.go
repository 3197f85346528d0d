package ca_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// fleet is the nodes of a realm, which do what the store says of them. It runs
// in a bubble.
type fleet struct {
	*realm
	t     *testing.T
	ctx   context.Context
	slow  func(id string) time.Duration // to answer
	check bool                          // that nodes understand each other at all times
	all   sync.WaitGroup

	mu      sync.Mutex
	members map[string]*member
	awake   map[string]bool
	renewed []time.Time
}

func newFleet(t *testing.T, s *realm, managers, workers int) *fleet {
	t.Helper()
	f := &fleet{realm: s, t: t, ctx: t.Context(), members: map[string]*member{}, awake: map[string]bool{}, slow: func(string) time.Duration { return 0 }}
	f.members["m0"] = f.founder()
	f.awake["m0"] = true
	tokens := s.cluster().JoinTokens
	for i := range managers + workers - 1 {
		token := tokens.Worker
		if i < managers-1 {
			token = tokens.Manager
		}
		time.Sleep(time.Second)
		f.add(f.join(token))
	}
	return f
}

// founder is the first manager with a certificate.
func (f *fleet) founder() *member {
	f.tb.Helper()
	csr, key := newCSR(f.tb)
	r, err := f.ca.Renew(f.ctx, pki.Node{ID: "m0", Cluster: cluster, Role: pki.Manager}, &renewRequest{CSR: csr})
	if err != nil {
		f.tb.Fatal(err)
	}
	return &member{id: "m0", key: key, chain: r.Certificate, roots: r.Roots}
}

// add makes a member of the fleet ready.
func (f *fleet) add(m *member) {
	f.mu.Lock()
	f.members[m.id], f.awake[m.id] = m, true
	f.mu.Unlock()
	f.report(m, swarm.NodeStateReady)
}

// report writes what a node tells the manager.
func (f *fleet) report(m *member, state swarm.NodeState) {
	f.mu.Lock()
	info := tlsInfo(f.tb, m.chain, m.roots)
	f.mu.Unlock()
	for {
		snap := f.store.Snapshot()
		n, ok := snap.Nodes.Get(m.id)
		if !ok {
			return
		}
		n = n.Clone().(*object.Node)
		n.Status.State, n.Description.TLSInfo = state, info
		tx := store.Begin(snap)
		tx.Update(n)
		if _, err := f.store.Propose(f.ctx, tx); !errors.Is(err, store.ErrSequence) {
			return
		}
	}
}

// start makes all nodes follow the store until the test ends.
func (f *fleet) start() {
	for id, m := range f.members {
		if f.awake[id] {
			f.all.Go(func() { f.follow(m) })
		}
	}
}

func (f *fleet) follow(m *member) {
	for f.ctx.Err() == nil {
		ch := f.store.Since(0)
		if !f.step(m, ch.Snapshot) {
			select {
			case <-ch.News:
			case <-f.ctx.Done():
			}
		}
	}
}

// step does one thing that the store asks of a node, if there is any.
func (f *fleet) step(m *member, snap *store.Snapshot) bool {
	n, ok := snap.Nodes.Get(m.id)
	if !ok {
		return false
	}
	roots, role, renew := ca.Swarm(snap, n)
	chain, _ := m.certificates(f.tb)
	mine := leafOf(f.tb, chain)
	switch {
	case !bytes.Equal(roots, m.roots):
		time.Sleep(f.slow(m.id))
		f.mu.Lock()
		m.roots = roots
		f.mu.Unlock()
	case mine.Generation < renew || (mine.Role == pki.Manager) != (role == swarm.NodeRoleManager):
		time.Sleep(f.slow(m.id))
		csr, key := newCSR(f.tb)
		r, err := f.ca.Renew(f.ctx, mine, &renewRequest{CSR: csr})
		if err != nil {
			time.Sleep(time.Second)
			return true
		}
		f.mu.Lock()
		m.key, m.chain = key, r.Certificate
		f.renewed = append(f.renewed, time.Now())
		f.mu.Unlock()
	default:
		return false
	}
	f.report(m, swarm.NodeStateReady)
	f.understand()
	return true
}

// leafOf is what a certificate says, believed or not.
func leafOf(tb testing.TB, chain []*x509.Certificate) pki.Node {
	tb.Helper()
	n, err := pki.Verify(chain, chain[:0], time.Now())
	if err == nil {
		tb.Fatal("believed without a root")
	}
	n = pki.Node{ID: chain[0].Subject.CommonName, Cluster: chain[0].Subject.Organization[0], Role: chain[0].Subject.OrganizationalUnit[0]}
	if _, err := fmt.Sscanf(chain[0].URIs[0].Path, "/"+n.ID+"/%d", &n.Generation); err != nil {
		tb.Fatal(err)
	}
	return n
}

// understand checks that every node believes every manager and is believed by it.
func (f *fleet) understand() {
	if !f.check {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for a, x := range f.members {
		for b, y := range f.members {
			chain, _ := x.certificates(f.tb)
			_, roots := y.certificates(f.tb)
			manager := leafOf(f.tb, chain).Role == pki.Manager
			if yc, _ := y.certificates(f.tb); !manager && leafOf(f.tb, yc).Role != pki.Manager || !f.awake[a] || !f.awake[b] {
				continue
			}
			if _, err := pki.Verify(chain, roots, time.Now()); err != nil {
				f.tb.Errorf("%s does not believe %s: %v", b, a, err)
			}
		}
	}
}

// issuers counts the nodes that are awake by whether their certificate is of
// the swarm's root.
func (f *fleet) issuers() (of, others int) {
	root := f.rootOf(f.cluster().RootCA.Cert)
	f.mu.Lock()
	defer f.mu.Unlock()
	for id, m := range f.members {
		chain, _ := m.certificates(f.tb)
		switch {
		case !f.awake[id]:
		case chain[0].CheckSignatureFrom(root) == nil:
			of++
		default:
			others++
		}
	}
	return of, others
}

func (s *realm) rootOf(certPEM []byte) *x509.Certificate {
	s.tb.Helper()
	certs, err := pki.ParseChain(certPEM)
	if err != nil {
		s.tb.Fatal(err)
	}
	return certs[0]
}

// lead runs the authority until stop is called.
func (f *fleet) lead(c *ca.CA) (stop func() error) {
	ctx, cancel := context.WithCancel(f.ctx)
	done := make(chan error, 1)
	f.all.Go(func() { done <- c.Run(ctx) })
	return func() error {
		cancel()
		return <-done
	}
}

// settled waits until no change of root is under way, for so long at most.
func (f *fleet) settled(t *testing.T, within time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for c := f.cluster(); c.RootCA.Rotation != nil || c.RootDue(); c = f.cluster() {
		ch := f.store.Since(0)
		select {
		case <-ch.News:
		case <-time.After(within - time.Since(start)):
			t.Fatalf("the root is still being changed: %+v", c.RootCA.Rotation)
		}
	}
	return time.Since(start)
}

// rotate asks for a new root.
func (s *realm) rotate() { s.change(func(c *object.Cluster) { c.Spec.CAConfig.ForceRotate++ }) }

// give asks for a root.
func (s *realm) give(root *pki.Root) {
	s.tb.Helper()
	key, err := root.KeyPEM()
	if err != nil {
		s.tb.Fatal(err)
	}
	s.change(func(c *object.Cluster) {
		c.Spec.CAConfig.SigningCACert, c.Spec.CAConfig.SigningCAKey = string(root.PEM()), string(key)
	})
}

// frail is a leader's store, which fails at the proposal of that number:
// before it is committed, or when it has been and nobody was told.
type frail struct {
	*storetest.Local
	at    int
	after bool
	fail  func()
}

var errCrash = errors.New("crashed")

func (f *frail) Propose(ctx context.Context, tx *store.Tx) (uint64, error) {
	f.at--
	if f.at != -1 {
		return f.Local.Propose(ctx, tx)
	}
	defer f.fail()
	if f.after {
		if _, err := f.Local.Propose(ctx, tx); err != nil {
			return 0, err
		}
	}
	return 0, errCrash
}

func (f *fleet) sorted() []string {
	var ids []string
	for id := range f.members {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }
