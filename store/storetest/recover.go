package storetest

import (
	"io"

	"github.com/hashicorp/raft"

	"skep/store"
)

// Recover makes a member that is down the only one of a group in an epoch.
// Replica.Recover does it with files.
func (c *Cluster) Recover(i int, epoch uint64) {
	c.tb.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	n := c.nodes[i]
	n.epoch = epoch
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(n.id)
	_, wire := raft.NewInmemTransport(raft.ServerAddress(n.name))
	self := raft.Configuration{Servers: []raft.Server{{ID: rc.LocalID, Address: raft.ServerAddress(n.name)}}}
	if err := raft.RecoverCluster(rc, &fsm{store.New()}, n.disk, n.disk, n.disk, wire, self); err != nil {
		c.tb.Fatal(err)
	}
}

// fsm replays a log.
type fsm struct{ *store.Store }

func (f *fsm) Apply(l *raft.Log) any { return f.Store.Apply(l.Index, l.Data) }

func (f *fsm) Snapshot() (raft.FSMSnapshot, error) { return persisted{f.Store.Snapshot()}, nil }

func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	return f.Store.Restore(r)
}

type persisted struct{ *store.Snapshot }

func (p persisted) Persist(sink raft.SnapshotSink) error {
	if err := p.Save(sink); err != nil {
		return err
	}
	return sink.Close()
}

func (persisted) Release() {}
