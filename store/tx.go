package store

import (
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// MaxCommand is the size in bytes that no transaction may exceed.
const MaxCommand = 3 << 19

// Tx gathers changes that are made all or not at all. An object that is
// changed or deleted must be what its Version says when the changes are made.
// A Tx belongs to one goroutine.
type Tx struct {
	base    *Snapshot
	changes []pending
	at      map[Key]int // in changes
	expects []expectation
}

type pending struct {
	op     op
	object object.Object
}

type op string

const (
	opCreate op = "create"
	opUpdate op = "update"
	opDelete op = "delete"
)

// Key names an object.
type Key struct {
	Kind object.Kind
	ID   string
}

// KeyOf is an object's key.
func KeyOf(o object.Object) Key { return Key{o.Kind(), o.Key()} }

// Begin starts a transaction on what s holds.
func Begin(s *Snapshot) *Tx { return &Tx{base: s, at: map[Key]int{}} }

// Base is the snapshot that the transaction began with.
func (tx *Tx) Base() *Snapshot { return tx.base }

// Create adds an object. The version and times are filled in when it is
// stored; so is a zero SpecVersion of a service or revision, with the same version.
func (tx *Tx) Create(o object.Object) { tx.add(opCreate, o) }

// Update replaces the object of the version that o has. As with Create, a zero
// SpecVersion of a service means the new version.
func (tx *Tx) Update(o object.Object) { tx.add(opUpdate, o) }

// Delete removes the object of the version that o has.
func (tx *Tx) Delete(o object.Object) { tx.add(opDelete, o) }

// Depart notes that a node which holds keys that nodes have in common is not to
// hold the next ones: it is removed or demoted by this transaction.
func (tx *Tx) Depart() {
	if c := tx.base.Cluster(); c != nil {
		c = c.Clone().(*object.Cluster)
		c.GossipKeys.Departures++
		c.TunnelKeys.Departures++
		tx.Update(c)
	}
}

// Len is how many objects would change.
func (tx *Tx) Len() int { return len(tx.changes) }

// Empty reports whether nothing would change.
func (tx *Tx) Empty() bool { return len(tx.changes) == 0 }

// add merges what was said of one object before.
func (tx *Tx) add(now op, o object.Object) {
	i, again := tx.at[KeyOf(o)]
	if !again {
		tx.at[KeyOf(o)] = len(tx.changes)
		tx.changes = append(tx.changes, pending{now, o})
		return
	}
	c := &tx.changes[i]
	switch {
	case c.op == opCreate && now == opDelete:
		last := len(tx.changes) - 1
		if i < last {
			tx.changes[i] = tx.changes[last]
			tx.at[KeyOf(tx.changes[i].object)] = i
		}
		tx.changes = tx.changes[:last]
		delete(tx.at, KeyOf(o))
	case c.op == opCreate:
		c.object = o
	case now == opCreate: // after a delete
		panic(fmt.Sprintf("transaction creates %s %s, which it deleted", o.Kind(), o.Key()))
	default:
		c.op, c.object = now, o
	}
}

// command is a transaction as it stands in the log.
type command struct {
	V    uint   `cbor:"v"`
	Type string `cbor:"type"`
	// Time is the proposer's, for CreatedAt and UpdatedAt.
	Time    time.Time `cbor:"time"`
	Changes []change  `cbor:"changes"`
	// Expects are looked at before the changes are made.
	Expects []expectation `cbor:"expects,omitempty"`
}

const (
	commandVersion = 1
	commandChange  = "change"
)

type change struct {
	Op   op          `cbor:"op"`
	Kind object.Kind `cbor:"kind"`
	// ID is only there for a delete.
	ID string `cbor:"id,omitempty"`
	// Version is what the object must be at; of a create it is 0.
	Version uint64 `cbor:"version,omitempty"`
	// Object is the encoded object; a delete has none.
	Object []byte `cbor:"object,omitempty"`
}

// Encode is the transaction as a command for [Store.Apply]. The time is the one
// that the objects will carry.
func (tx *Tx) Encode(now time.Time) ([]byte, error) {
	c := command{V: commandVersion, Type: commandChange, Time: now, Changes: make([]change, len(tx.changes)), Expects: tx.expects}
	for i, p := range tx.changes {
		d := change{Op: p.op, Kind: p.object.Kind(), Version: p.object.Metadata().Version.Index}
		switch p.op {
		case opDelete:
			d.ID = p.object.Key()
		case opCreate:
			d.Version = 0
			fallthrough
		default:
			var err error
			if d.Object, err = encodeObject(p.object); err != nil {
				return nil, err
			}
		}
		c.Changes[i] = d
	}
	b, err := object.Encode(c)
	if err != nil {
		return nil, fmt.Errorf("encode transaction: %w", err)
	}
	if len(b) > MaxCommand {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "raft: raft message is too large and can't be sent")
	}
	return b, nil
}

// encodeObject leaves out the version and times, which applying fills in.
func encodeObject(o object.Object) ([]byte, error) {
	bare := shallow(o)
	*bare.Metadata() = swarm.Meta{}
	b, err := object.Encode(bare)
	if err != nil {
		return nil, fmt.Errorf("encode %s %s: %w", o.Kind(), o.Key(), err)
	}
	return b, nil
}

// shallow is a copy of the outermost struct.
func shallow(o object.Object) object.Object {
	switch o := o.(type) {
	case *object.Cluster:
		return new(*o)
	case *object.Node:
		return new(*o)
	case *object.Service:
		return new(*o)
	case *object.Revision:
		return new(*o)
	case *object.Task:
		return new(*o)
	case *object.Secret:
		return new(*o)
	case *object.Config:
		return new(*o)
	case *object.Network:
		return new(*o)
	case *object.Guest:
		return new(*o)
	default:
		panic(fmt.Sprintf("object of unknown type %T", o))
	}
}
