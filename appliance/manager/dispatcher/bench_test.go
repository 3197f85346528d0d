package dispatcher_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/dispatcher"
	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

// BenchmarkAssign gives each of many agents another task, and is over when all
// have it. p50 and p99 are the times from the first write until an agent has its
// task, B/agent what an agent's session keeps in memory: the agents themselves
// are not there but for a few bytes each.
func BenchmarkAssign(b *testing.B) {
	for _, n := range []int{1000, 10000} {
		b.Run(fmt.Sprintf("agents=%d", n), func(b *testing.B) { benchmarkAssign(b, n) })
	}
}

func benchmarkAssign(b *testing.B, n int) {
	b.Helper()
	db := storetest.New(b)
	nodes := make([]string, n)
	for i := range nodes {
		nodes[i] = fmt.Sprintf("n%05d", i)
	}
	for some := range slices.Chunk(nodes, 500) {
		db.Write(b, func(tx *store.Tx) {
			for _, id := range some {
				o := &object.Node{}
				o.ID, o.Description.Hostname, o.Status.State = id, id, swarm.NodeStateDown
				tx.Create(o)
			}
		})
	}
	d := dispatcher.New(dispatcher.Config{Store: db, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	var all sync.WaitGroup
	defer all.Wait()
	defer cancel()
	all.Go(func() { _ = d.Run(ctx) }) // until cancel
	for {                             // until it leads
		if _, err := d.Connect(ctx, "nobody"); err.Error() == "node nobody is not available" {
			break
		}
		runtime.Gosched()
	}
	sink := &sink{began: time.Now(), news: make(chan struct{}, 1)}
	before := memory()
	for _, id := range nodes {
		f := &far{sink: sink, in: make(chan []byte, 4), closed: make(chan struct{})}
		f.in <- frame(b, &wire.Message{Hello: &wire.Hello{Protocol: wire.Protocol, Description: swarm.NodeDescription{Hostname: id}}})
		all.Go(func() { _ = d.Serve(ctx, f, pki.Node{ID: id, Generation: 1}) }) // until cancel
	}
	sink.await(n)
	each := (memory() - before) / uint64(n)
	var took []time.Duration
	for round := 1; b.Loop(); round++ {
		sink.begin()
		for some := range slices.Chunk(nodes, 250) {
			db.Write(b, func(tx *store.Tx) {
				for _, id := range some {
					t := &object.Task{ID: fmt.Sprintf("%s-%d", id, round), ServiceID: "s", NodeID: id, DesiredState: swarm.TaskStateRunning}
					t.Status.State = swarm.TaskStateAssigned
					tx.Create(t)
					if old, ok := db.Snapshot().Tasks.Get(fmt.Sprintf("%s-%d", id, round-1)); ok {
						tx.Delete(old)
					}
				}
			})
		}
		took = append(took, sink.await(n)...)
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(each), "B/agent")
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// sink notes when sets of assignments arrive.
type sink struct {
	mu    sync.Mutex
	began time.Time       // guarded by mu, as is took
	took  []time.Duration // since began
	news  chan struct{}   // size 1
}

func (s *sink) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.began, s.took = time.Now(), nil
}

func (s *sink) arrived() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.took = append(s.took, time.Since(s.began))
	select {
	case s.news <- struct{}{}:
	default:
	}
}

// await returns when n sets have arrived.
func (s *sink) await(n int) []time.Duration {
	for {
		s.mu.Lock()
		took := s.took
		s.mu.Unlock()
		if len(took) >= n {
			return took
		}
		<-s.news
	}
}

// far is the manager's end of a connection to an agent that acknowledges what it
// is assigned, and has no goroutine.
type far struct {
	net.Conn // nil: nothing else is called
	sink     *sink
	in       chan []byte
	rest     []byte
	closing  sync.Once
	closed   chan struct{}
}

// frame is what a message is on the wire.
func frame(tb testing.TB, m *wire.Message) []byte {
	tb.Helper()
	var w writer
	if err := wire.NewConn(&w).Send(m, time.Minute); err != nil {
		tb.Fatal(err)
	}
	return w.b
}

type writer struct {
	net.Conn // nil: nothing else is called
	b        []byte
}

func (w *writer) Write(b []byte) (int, error)      { w.b = append(w.b, b...); return len(b), nil }
func (w *writer) SetWriteDeadline(time.Time) error { return nil }

type reader struct {
	net.Conn // nil: nothing else is called
	io.Reader
}

func (r *reader) Read(b []byte) (int, error)      { return r.Reader.Read(b) }
func (r *reader) SetReadDeadline(time.Time) error { return nil }

func (f *far) Write(b []byte) (int, error) {
	m, err := wire.NewConn(&reader{Reader: bytes.NewReader(b)}).Receive(time.Minute)
	if err != nil {
		return 0, err
	}
	if m.Assignments != nil {
		f.sink.arrived()
		var w writer
		ack := &wire.Message{Acknowledge: &wire.Acknowledge{ResultsIn: m.Assignments.ResultsIn}}
		if err := wire.NewConn(&w).Send(ack, time.Minute); err != nil {
			return 0, err
		}
		f.in <- w.b
	}
	return len(b), nil
}

func (f *far) Read(b []byte) (int, error) {
	if len(f.rest) == 0 {
		select {
		case f.rest = <-f.in:
		case <-f.closed:
			return 0, io.EOF
		}
	}
	n := copy(b, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *far) Close() error {
	f.closing.Do(func() { close(f.closed) })
	return nil
}

func (f *far) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (f *far) SetReadDeadline(time.Time) error  { return nil }
func (f *far) SetWriteDeadline(time.Time) error { return nil }
