package manager_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/agent"
	"skep/appliance/manager/dispatcher"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// BenchmarkSpread is how long it takes in real time, with agents that have a
// session each over TLS 1.3: told is from the write of a new endpoint until an
// agent hands it to its data plane, stopped from the write that a task is to stop
// until all have answered that it drains and its node stops it.
func BenchmarkSpread(b *testing.B) {
	for _, n := range []int{10, 50} {
		b.Run(fmt.Sprintf("agents=%d", n), func(b *testing.B) { benchmarkSpread(b, n) })
	}
}

func benchmarkSpread(b *testing.B, n int) {
	b.Helper()
	f := &fleet{store: storetest.New(b), told: make(chan told, 100*n), stopped: make(chan time.Time, n)}
	f.store.Write(b, func(tx *store.Tx) {
		network := &object.Network{VNI: 4096}
		network.ID = "a"
		tx.Create(network)
		for i := range n {
			o := &object.Node{}
			o.ID, o.Status.State = fmt.Sprint("n", i), swarm.NodeStateReady
			tx.Create(o)
			tx.Create(runningTask(fmt.Sprint("base", i), o.ID))
		}
	})
	f.begin(b, n)
	f.await(n, "base0") // until all have a session
	var arrived, stopped []time.Duration
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("t", i)
		began := time.Now()
		f.store.Write(b, func(tx *store.Tx) { tx.Create(runningTask(id, "n0")) })
		for _, at := range f.await(n, id) {
			arrived = append(arrived, at.Sub(began))
		}
		began = time.Now()
		f.store.Write(b, func(tx *store.Tx) {
			t, _ := tx.Base().Tasks.Get(id)
			t = t.Clone().(*object.Task)
			t.DesiredState = swarm.TaskStateShutdown
			tx.Update(t)
		})
		stopped = append(stopped, (<-f.stopped).Sub(began))
	}
	for name, took := range map[string][]time.Duration{"told": arrived, "stopped": stopped} {
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, name+"-p99-ms")
	}
}

func runningTask(id, node string) *object.Task {
	t := &object.Task{ID: id, ServiceID: "s", NodeID: node, DesiredState: swarm.TaskStateRunning}
	t.Status.State = swarm.TaskStateRunning
	t.Networks = []object.TaskNetwork{{ID: "a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.7/24")}}}
	return t
}

// fleet is a dispatcher and agents.
type fleet struct {
	store   *storetest.Local
	told    chan told
	stopped chan time.Time
}

// told is that an agent knows of active endpoints.
type told struct {
	node string
	view *wire.NetworkView
	at   time.Time
}

// await is when each agent first knew a task to be active.
func (f *fleet) await(n int, task string) (at []time.Time) {
	seen := map[string]bool{}
	for len(seen) < n {
		t := <-f.told
		if m := t.view.Networks["a"]; m != nil && m.Endpoints[task].State == wire.EndpointActive && !seen[t.node] {
			seen[t.node] = true
			at = append(at, t.at)
		}
	}
	return at
}

func (f *fleet) begin(b *testing.B, n int) {
	b.Helper()
	logger := slog.New(slog.DiscardHandler)
	d := dispatcher.New(dispatcher.Config{Store: f.store, Logger: logger})
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate(b)}, MinVersion: tls.VersionTLS13})
	if err != nil {
		b.Fatal(err)
	}
	dir, err := os.MkdirTemp("/dev/shm", "skep-bench-") //nolint:usetesting // b.TempDir is on a disk: that is not what is measured
	if err != nil {
		dir = b.TempDir()
	}
	b.Cleanup(func() { _ = os.RemoveAll(dir) })
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	b.Cleanup(func() { cancel(); _ = l.Close(); all.Wait() })
	all.Go(func() { _ = d.Run(ctx) }) // until cancel
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				c := conn.(*tls.Conn)
				if c.HandshakeContext(ctx) == nil {
					_ = d.Serve(ctx, c, pki.Node{ID: c.ConnectionState().ServerName, Generation: 1}) // until cancel
				}
			})
		}
	})
	for i := range n {
		id := fmt.Sprint("n", i)
		dialer := &tls.Dialer{Config: &tls.Config{ServerName: id, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}} //nolint:gosec // not what is measured
		var a *agent.Agent
		a = agent.New(agent.Config{
			NodeID: id, File: filepath.Join(dir, id), Sealer: open{}, Executor: idle{f.stopped}, Logger: logger,
			Dial: func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", l.Addr().String()) },
			Networks: func(v *wire.NetworkView) {
				f.told <- told{id, v, time.Now()}
				a.Programmed(wire.Programmed{Networks: v.Version})
			},
		})
		all.Go(func() { _ = a.Run(ctx) }) // until cancel
	}
}

func certificate(b *testing.B) tls.Certificate {
	b.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		b.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// idle runs tasks that do nothing, and notes when one is stopped.
type idle struct{ stopped chan<- time.Time }

func (idle) Describe(context.Context) (swarm.NodeDescription, error) {
	return swarm.NodeDescription{}, nil
}
func (idle) Retain(context.Context, []string) error                    { return nil }
func (i idle) Controller(*object.Assignment) (agent.Controller, error) { return i, nil }
func (idle) Prepare(context.Context) error                             { return nil }
func (idle) Start(context.Context) error                               { return nil }
func (idle) Remove(context.Context) error                              { return nil }
func (i idle) Shutdown(context.Context) error                          { i.stopped <- time.Now(); return nil }

func (idle) Wait(ctx context.Context) error { <-ctx.Done(); return errors.New("cut short") }

func (idle) Status(context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error) {
	return nil, nil, nil
}
