// Package controltest makes callers of every class for tests of a control port,
// and tries all of them on all of its routes.
//
// It judges a port from the outside only: by what a caller that has a real
// certificate and a real connection is answered.
package controltest

import (
	"crypto/tls"
	"testing"
	"time"

	"skep/appliance/wire/control"
	"skep/pki"
)

// Swarm issues identities of one swarm.
type Swarm struct {
	Root    *pki.Root
	Cluster string
	Epoch   uint64
}

// NewSwarm is a swarm with a root of its own.
func NewSwarm(tb testing.TB, cluster string) *Swarm {
	tb.Helper()
	root, err := pki.NewRoot(time.Now())
	if err != nil {
		tb.Fatal(err)
	}
	return &Swarm{Root: root, Cluster: cluster}
}

// Identity is that of a node of the swarm, with a certificate that was issued
// age ago and is valid for life from then.
func (s *Swarm) Identity(tb testing.TB, id, role string, generation uint64, age, life time.Duration) *control.Identity {
	tb.Helper()
	n := pki.Node{ID: id, Cluster: s.Cluster, Role: role, Generation: generation}
	certPEM, keyPEM, err := s.Root.Enroll(n, time.Now().Add(-age), life)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		tb.Fatal(err)
	}
	roots, err := pki.ParseChain(s.Root.PEM())
	if err != nil {
		tb.Fatal(err)
	}
	return &control.Identity{Certificate: cert, Roots: roots, Cluster: s.Cluster, NodeID: id, Epoch: s.Epoch}
}

// Worker and Manager are identities that are good for a day.
func (s *Swarm) Worker(tb testing.TB, id string, generation uint64) *control.Identity {
	tb.Helper()
	return s.Identity(tb, id, pki.Worker, generation, 0, 24*time.Hour)
}

// Manager is like Worker.
func (s *Swarm) Manager(tb testing.TB, id string, generation uint64) *control.Identity {
	tb.Helper()
	return s.Identity(tb, id, pki.Manager, generation, 0, 24*time.Hour)
}
