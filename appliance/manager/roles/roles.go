// Package roles makes the group of replicas what the nodes' roles say: it lets
// in who is to be a manager, gives votes to an odd number of those that follow
// closely, and takes out who is demoted or gone.
//
// It makes one change at a time, and none after which those that vote and can be
// reached would be no quorum. A demotion is finished when the node is no replica
// any more; only then is it told to be a worker. What the nodes' manager status
// says is written here, whenever it changes.
//
// It issues no certificate and opens no connection: that a node is allowed to be
// a manager, package ca decides; that it is ready to be one, the node says.
package roles

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"skep/appliance/manager/loop"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// pace is how often the replicas' health is looked at, if there are several.
const pace = time.Second

// Replica is the group of replicas as its leader changes it.
type Replica interface {
	Members() []replica.Server
	// Contacts is what the leader knows of the others, by node.
	Contacts() map[string]replica.Contact
	AddNonvoter(ctx context.Context, id, nodeID string) error
	AddVoter(ctx context.Context, id, nodeID string) error
	DemoteVoter(ctx context.Context, id string) error
	Remove(ctx context.Context, id string) error
	// Transfer hands the leadership to a voter, "" for any.
	Transfer(ctx context.Context, nodeID string) error
}

// Config is what the roles loop needs.
type Config struct {
	Store   store.Proposer
	NodeID  string // of this manager
	Replica Replica
	// Generation is that of the certificate by which a node has its session.
	Generation func(node string) (generation uint64, ok bool)
	Logger     *slog.Logger
}

// Run keeps the group until ctx ends or the store fails.
func Run(ctx context.Context, cfg Config) error {
	r := &run{cfg: cfg, began: time.Now(), close: map[string]time.Time{}}
	var after uint64
	var due time.Time
	for {
		ch := cfg.Store.Since(after)
		after = ch.Snapshot.Index
		if ch.All || slices.ContainsFunc(ch.Keys, ofNode) || (!due.IsZero() && !due.After(time.Now())) {
			var err error
			if due, err = r.round(ctx, ch.Snapshot); err != nil {
				return err
			}
		}
		if err := loop.Wait(ctx, ch.News, due); err != nil {
			return err
		}
	}
}

func ofNode(k store.Key) bool { return k.Kind == object.KindNode }

// round looks once, and says when to look again if nothing changes; zero is
// never.
func (r *run) round(ctx context.Context, snap *store.Snapshot) (next time.Time, err error) {
	v := r.view(snap, time.Now())
	if changes := Statuses(v); len(changes) > 0 {
		tx := store.Begin(snap)
		for _, n := range changes {
			tx.Update(n)
		}
		if _, err := r.cfg.Store.Propose(ctx, tx); err != nil && !errors.Is(err, store.ErrSequence) {
			return next, fmt.Errorf("write manager status: %w", err)
		}
		return v.Now, nil
	}
	if len(v.Servers) > 1 || waiting(v) {
		next = v.Now.Add(pace)
	}
	if s := Plan(v); s.Do != Rest && !r.again.After(v.Now) {
		r.take(ctx, s)
		next = time.Now().Add(pace)
	}
	return next, nil
}

type run struct {
	cfg   Config
	began time.Time
	// close holds since when a member that does not vote follows closely.
	close map[string]time.Time
	again time.Time // not before
	last  Step      // that was logged
}

// view is what there is to decide on.
func (r *run) view(snap *store.Snapshot, now time.Time) View {
	v := View{
		Self: r.cfg.NodeID, Snapshot: snap, Servers: r.cfg.Replica.Members(), Contacts: r.cfg.Replica.Contacts(),
		Generation: r.cfg.Generation, Began: r.began, Now: now,
	}
	r.close = follow(r.close, v)
	v.Close = r.close
	return v
}

// take makes one change of the group. What could not be made is planned again.
func (r *run) take(ctx context.Context, s Step) {
	log := r.cfg.Logger.With("step", string(s.Do), "node", s.NodeID, "raft", s.ID, "why", s.Why)
	if s.Do == Blocked {
		if s != r.last {
			log.WarnContext(ctx, "managers not changed")
		}
		r.last = s
		return
	}
	r.last = s
	var err error
	switch g := r.cfg.Replica; s.Do {
	case Add:
		err = g.AddNonvoter(ctx, s.ID, s.NodeID)
	case Promote:
		err = g.AddVoter(ctx, s.ID, s.NodeID)
	case Demote:
		err = g.DemoteVoter(ctx, s.ID)
	case Remove:
		err = g.Remove(ctx, s.ID)
	case Transfer:
		err = g.Transfer(ctx, s.NodeID)
	case Rest, Blocked:
	}
	if err == nil {
		log.InfoContext(ctx, "managers changed")
		return
	}
	if ctx.Err() == nil {
		log.WarnContext(ctx, "managers not changed", "err", err)
	}
	r.again = time.Now().Add(5 * pace)
}
