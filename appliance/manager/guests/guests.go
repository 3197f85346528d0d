// Package guests gives containers that no service made their places on
// attachable networks of the swarm: what the leader answers to nodes.
//
// A place is an [object.Guest]: written here, given addresses by the allocator,
// told to nodes like a task's. A node asks, lists and releases its own only.
// The package decides nothing that is not in the store, so another leader goes
// on where this one ended.
package guests

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

const (
	// addressWait is how long a guest may wait for its addresses. Docker's
	// clients know the number.
	addressWait = 20 * time.Second
	// problemWait is how long of that it waits although the allocator has said
	// why it has none: what another gives up just now may do.
	problemWait = 3 * time.Second
	// tries is how often a write is begun again because of others.
	tries = 10
)

// Guests are those of all nodes.
type Guests struct {
	store store.Proposer
	log   *slog.Logger
}

// New is for the manager of a store.
func New(s store.Proposer, log *slog.Logger) *Guests { return &Guests{store: s, log: log} }

// Attach gives a container of a node a place on a network. It returns when the
// place has addresses, or why it has none; then there is no guest.
func (g *Guests) Attach(ctx context.Context, node string, r *wire.GuestRequest) (*wire.GuestReply, error) {
	if err := r.Check(); err != nil {
		return nil, err
	}
	n, err := network(g.store.Snapshot(), r.Network)
	if err != nil {
		return nil, err
	}
	if err = g.create(ctx, node, r); err != nil {
		return nil, err
	}
	addressed, err := g.await(ctx, r.ID)
	if err != nil {
		if gone := g.Release(context.WithoutCancel(ctx), node, &wire.GuestRelease{IDs: []string{r.ID}}); gone != nil {
			g.log.WarnContext(ctx, "left a guest without addresses", "node", node, "network", n.ID, "err", gone)
		}
		return nil, err
	}
	return &wire.GuestReply{Network: n.ID, NetworkName: n.Spec.Name, Addresses: addressed.Network.Addresses}, nil
}

// network is the one that a user means, if containers may join it.
func network(snap *store.Snapshot, ref string) (*object.Network, error) {
	n, err := snap.Networks.Find(ref)
	if errdefs.IsNotFound(err) || err == nil && n.PendingDelete {
		return nil, object.Errorf(errdefs.ErrNotFound, "network %s not found", ref)
	}
	if err != nil {
		return nil, err
	}
	if !n.Spec.Attachable || n.Spec.Ingress {
		return nil, object.Errorf(errdefs.ErrPermissionDenied, "network %s not manually attachable", ref)
	}
	return n, nil
}

// create writes the guest, unless the node has asked for it before.
func (g *Guests) create(ctx context.Context, node string, r *wire.GuestRequest) error {
	for range tries {
		snap := g.store.Snapshot()
		if old, ok := snap.Guests.Get(r.ID); ok {
			if old.NodeID != node {
				return object.Errorf(errdefs.ErrPermissionDenied, "guest %s is not of node %s", r.ID, node)
			}
			return nil
		}
		if count(snap, node) >= wire.MaxGuests {
			return object.Errorf(errdefs.ErrResourceExhausted, "node %s has %d containers on networks of the swarm", node, wire.MaxGuests)
		}
		n, err := network(snap, r.Network)
		if err != nil {
			return err
		}
		tx := store.Begin(snap)
		tx.There(n)
		tx.Create(&object.Guest{
			ID: r.ID, NodeID: node, ContainerID: r.ContainerID, Name: r.Name, Wanted: r.Wanted,
			Network: object.TaskNetwork{ID: n.ID, Aliases: r.Aliases},
		})
		_, err = g.store.Propose(ctx, tx)
		if errors.Is(err, store.ErrSequence) || errdefs.IsAlreadyExists(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("attach to network %s: %w", n.Spec.Name, err)
		}
		return nil
	}
	return object.Errorf(errdefs.ErrUnavailable, "the guest is being changed by others; try again")
}

func count(snap *store.Snapshot, node string) (n int) {
	for range snap.Guests.By(store.ByNode, node) {
		n++
	}
	return n
}

// await returns the guest when it has addresses.
func (g *Guests) await(ctx context.Context, id string) (*object.Guest, error) {
	ctx, cancel := context.WithTimeout(ctx, addressWait)
	defer cancel()
	var why string
	var late <-chan time.Time
	for after := uint64(0); ; {
		ch := g.store.Since(after)
		after = ch.Snapshot.Index
		guest, ok := ch.Snapshot.Guests.Get(id)
		switch {
		case !ok:
			return nil, attaching("the network or the node was removed")
		case len(guest.Network.Addresses) > 0:
			return guest, nil
		}
		if why = guest.Problem; why != "" && late == nil {
			t := time.NewTimer(problemWait)
			defer t.Stop()
			late = t.C
		}
		select {
		case <-ch.News:
		case <-late:
			return nil, attaching(why)
		case <-ctx.Done():
			if why == "" {
				why = context.Cause(ctx).Error()
			}
			return nil, attaching(why)
		}
	}
}

// attaching is the error that Docker's users know.
func attaching(why string) error {
	return object.Errorf(errdefs.ErrResourceExhausted, "attaching to network failed, make sure your network options are correct and check manager logs: %s", why)
}

// List tells a node which guests it has.
func (g *Guests) List(node string) *wire.GuestList {
	var ids []string
	for guest := range g.store.Snapshot().Guests.By(store.ByNode, node) {
		ids = append(ids, guest.ID)
	}
	return &wire.GuestList{IDs: ids}
}

// Release takes guests of a node away. One that is not there is no error.
func (g *Guests) Release(ctx context.Context, node string, r *wire.GuestRelease) error {
	if err := r.Check(); err != nil {
		return err
	}
	for _, ids := range slices.Collect(slices.Chunk(r.IDs, 256)) {
		if err := g.release(ctx, node, ids); err != nil {
			return err
		}
	}
	return nil
}

func (g *Guests) release(ctx context.Context, node string, ids []string) error {
	for range tries {
		snap := g.store.Snapshot()
		tx := store.Begin(snap)
		for _, id := range ids {
			if guest, ok := snap.Guests.Get(id); ok && guest.NodeID == node {
				tx.Delete(guest)
			}
		}
		if tx.Empty() {
			return nil
		}
		_, err := g.store.Propose(ctx, tx)
		if errors.Is(err, store.ErrSequence) {
			continue // the allocator was quicker
		}
		if err != nil {
			return fmt.Errorf("release guests: %w", err)
		}
		return nil
	}
	return object.Errorf(errdefs.ErrUnavailable, "the guests are being changed by others; try again")
}
