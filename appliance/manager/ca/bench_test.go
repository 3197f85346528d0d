package ca_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/ca"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// BenchmarkRenew is how fast certificates are issued to the nodes of a large
// swarm: proof of possession, command, signature.
func BenchmarkRenew(b *testing.B) {
	const nodes = 1000
	s := newRealm(b, ca.Config{})
	populate(s, nodes)
	csrs := make([][]byte, nodes)
	i := 0
	for b.Loop() {
		if i%nodes == 0 { // new keys for all, and nobody has to wait
			b.StopTimer()
			s.ca = ca.New(ca.Config{Store: s.store, NodeID: "m0", Logger: quiet(), Certificate: s.certificate})
			for j := range csrs {
				csrs[j], _ = newCSR(b)
			}
			b.StartTimer()
		}
		from := pki.Node{ID: fmt.Sprintf("w%d", i%nodes), Cluster: cluster, Role: pki.Worker}
		if _, err := s.ca.Renew(b.Context(), from, &renewRequest{CSR: csrs[i%nodes]}); err != nil {
			b.Fatal(err)
		}
		i++
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "certs/s")
}

// BenchmarkRotation is a change of root in a swarm of a thousand nodes that
// answer at once and are all asked at once.
func BenchmarkRotation(b *testing.B) {
	for b.Loop() {
		ctx, cancel := context.WithCancel(b.Context())
		s := newRealm(b, ca.Config{Batch: 1 << 20, Pause: time.Nanosecond})
		populate(s, 1000)
		f := &fleet{realm: s, ctx: ctx, members: map[string]*member{}, awake: map[string]bool{}, slow: func(string) time.Duration { return 0 }}
		f.members["m0"], f.awake["m0"] = f.founder(), true
		root, err := pki.ParseRoot(s.cluster().RootCA.Cert, s.cluster().RootCA.Key)
		if err != nil {
			b.Fatal(err)
		}
		for n := range s.store.Snapshot().Nodes.All() {
			if n.ID == "m0" {
				continue
			}
			m := &member{id: n.ID, roots: s.cluster().RootCA.Cert}
			f.members[n.ID], f.awake[n.ID] = m, true
			if m.chain, _, err = root.Enroll(pki.Node{ID: n.ID, Cluster: cluster, Role: pki.Worker}, time.Now(), pki.DefaultExpiry); err != nil {
				b.Fatal(err)
			}
		}
		f.lead(f.ca)
		s.rotate()
		for c := s.cluster(); c.RootCA.Rotation != nil || c.RootDue(); c = s.cluster() {
			for _, m := range f.members {
				for f.step(m, s.store.Snapshot()) {
				}
			}
		}
		if of, others := f.issuers(); of != 1001 || others != 0 {
			b.Fatalf("%d certificates of the new root, %d others", of, others)
		}
		cancel()
		f.all.Wait()
	}
}

// populate adds workers that are ready.
func populate(s *realm, count int) {
	s.tb.Helper()
	info := tlsInfo(s.tb, s.cluster().RootCA.Cert, s.cluster().RootCA.Cert)
	s.store.Write(s.tb, func(tx *store.Tx) {
		for i := range count {
			n := &object.Node{CertRole: swarm.NodeRoleWorker}
			n.ID, n.Spec.Role, n.Status.State = fmt.Sprintf("w%d", i), swarm.NodeRoleWorker, swarm.NodeStateReady
			n.Description.TLSInfo = info
			tx.Create(n)
		}
	})
}
