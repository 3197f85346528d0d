package replica

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"skep/store"
	"skep/store/raftlog"
)

// Recover makes a new group of one out of what a member knew whose group has
// lost its majority for good: from is that member, which does not run, and to
// the one that begins with its state, under another ID and in another directory.
// What the member had in its log counts, acknowledged or not.
//
// The old directory stays as it is. The new one is there when all of it is, so
// after a crash Recover can be called again. The members of the old group must
// never be talked to again: they would take the new one back into the past.
func Recover(ctx context.Context, from, to Config) error {
	if err := recoverGroup(ctx, from, to); err != nil {
		return fmt.Errorf("recover group: %w", err)
	}
	return nil
}

func recoverGroup(ctx context.Context, from, to Config) (err error) {
	if to.ID == from.ID || to.Dir == from.Dir {
		return fmt.Errorf("member %s in %s is the old one", to.ID, to.Dir)
	}
	if _, err = os.Stat(to.Dir); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is there already", to.Dir))
	}
	part := to.Dir + ".part"
	if err = os.RemoveAll(part); err != nil {
		return err
	}
	old, oldSnaps, err := raftlog.Open(logConfig(from, from.Dir))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, old.Close()) }()
	fresh, freshSnaps, err := raftlog.Open(logConfig(to, part))
	if err != nil {
		return err
	}
	err = carryOver(ctx, from, to, Stores{old, old, oldSnaps}, Stores{fresh, fresh, freshSnaps})
	if err = errors.Join(err, fresh.Close()); err != nil {
		return errors.Join(err, os.RemoveAll(part))
	}
	if err = os.Rename(part, to.Dir); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(to.Dir))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func logConfig(cfg Config, dir string) raftlog.Config {
	return raftlog.Config{Dir: dir, ClusterID: cfg.ClusterID, NodeID: cfg.ID, Keyring: cfg.Keyring, Logger: cfg.Logger}
}

// carryOver makes a snapshot of all that is in the old stores the first of the
// new ones, with the new member as the only one.
func carryOver(ctx context.Context, from, to Config, old, fresh Stores) error {
	reader := &Member{Store: store.New(), cfg: from, failed: make(chan error, 1)}
	conf := reader.config()
	conf.LocalID = raft.ServerID(to.ID)
	_, wire := raft.NewInmemTransport(raft.ServerAddress(to.NodeID))
	only := raft.Configuration{Servers: []raft.Server{{ID: conf.LocalID, Address: raft.ServerAddress(to.NodeID)}}}
	last, err := old.Log.LastIndex()
	if err != nil {
		return err
	}
	f := &fsm{member: reader}
	err = raft.RecoverCluster(conf, f, keptLog{old.Log}, old.Stable, carriedSnapshots{old.Snapshots, fresh.Snapshots}, wire, only)
	if err != nil {
		return errors.Join(err, f.broken)
	}
	// A vote that was given in a term stays given.
	term, err := old.Stable.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return err
	}
	if err := fresh.Stable.SetUint64([]byte("CurrentTerm"), term); err != nil {
		return err
	}
	from.Logger.WarnContext(ctx, "made a new group of what this member knew", "member", to.ID, "log", last, "state", reader.Snapshot().Index)
	return nil
}

// keptLog is only read: what comes after the new snapshot is the new log's.
type keptLog struct{ raft.LogStore }

func (keptLog) DeleteRange(uint64, uint64) error { return nil }

// carriedSnapshots are read in one store and written to another.
type carriedSnapshots struct {
	raft.SnapshotStore
	to raft.SnapshotStore
}

func (s carriedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, conf raft.Configuration, confIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	return s.to.Create(version, index, term, conf, confIndex, trans)
}
