package store

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// ErrSequence says that an object is no longer at the version that a
// transaction expects: plan again, or tell the client.
var ErrSequence = errors.New("update out of sequence")

// FatalError says that a command cannot be applied by this program, though it
// was committed. A node that meets one must stop: to skip it would let its
// state go a way of its own.
type FatalError struct{ Err error }

func (e *FatalError) Error() string { return "apply command: " + e.Err.Error() }
func (e *FatalError) Unwrap() error { return e.Err }

// Apply makes the changes of a command, all or none, as version index. It
// depends on nothing but the state and its arguments, so that all replicas stay
// equal. Other than a [FatalError], an error means that nothing was changed.
// Apply is called by one goroutine, with ever greater indexes.
func (s *Store) Apply(index uint64, encoded []byte) error {
	d := &draft{Snapshot: *s.Snapshot(), drafted: map[object.Kind]bool{}}
	d.Index = index
	if err := d.run(encoded); err != nil {
		return err
	}
	s.publish(&d.Snapshot, d.keys)
	return nil
}

// draft is the snapshot that is to be.
type draft struct {
	Snapshot
	drafted map[object.Kind]bool // the tables that are copies of our own
	keys    []Key
}

// Check is the [FatalError] that applying a command would come to, whatever the
// state; nil if there is none.
func Check(encoded []byte) error {
	c, err := parse(encoded)
	if err != nil {
		return err
	}
	for i := range c.Changes {
		if _, err := c.Changes[i].decode(); err != nil {
			return err
		}
	}
	for _, e := range c.Expects {
		if err := e.check(); err != nil {
			return err
		}
	}
	return nil
}

func parse(encoded []byte) (*command, error) {
	if len(encoded) > MaxCommand {
		return nil, &FatalError{fmt.Errorf("%d bytes are too many", len(encoded))}
	}
	c := new(command)
	if err := object.Decode(encoded, c); err != nil {
		return nil, &FatalError{err}
	}
	if c.V != commandVersion || c.Type != commandChange {
		return nil, &FatalError{fmt.Errorf("unknown command %q, version %d: the swarm is used by a newer version of this program", c.Type, c.V)}
	}
	return c, nil
}

// decode is the object of a change; a delete has none.
func (ch *change) decode() (object.Object, error) {
	switch ch.Op {
	case opCreate, opUpdate:
	case opDelete:
		return nil, nil
	default:
		return nil, &FatalError{fmt.Errorf("unknown change %q", ch.Op)}
	}
	o := object.New(ch.Kind)
	if o == nil {
		return nil, &FatalError{fmt.Errorf("unknown kind %q", ch.Kind)}
	}
	if err := object.Decode(ch.Object, o); err != nil {
		return nil, &FatalError{fmt.Errorf("decode %s: %w", ch.Kind, err)}
	}
	return o, nil
}

func (d *draft) run(encoded []byte) error {
	c, err := parse(encoded)
	if err != nil {
		return err
	}
	for _, e := range c.Expects {
		if err := d.expected(e); err != nil {
			return err
		}
	}
	// Names are looked at last: one may pass from an object to another.
	puts := make([]object.Object, 0, len(c.Changes))
	for i := range c.Changes {
		o, err := d.change(c, &c.Changes[i])
		if err != nil {
			return err
		}
		if o != nil {
			puts = append(puts, o)
		}
	}
	for _, o := range puts {
		if err := d.checkName(o); err != nil {
			return err
		}
	}
	return nil
}

// change makes one change, and is the object that is there after it.
func (d *draft) change(c *command, ch *change) (object.Object, error) {
	o, err := ch.decode()
	if err != nil {
		return nil, err
	}
	id := ch.ID
	if o != nil {
		fillSpecVersion(o, d.Index)
		id = o.Key()
	}
	old := d.Get(ch.Kind, id)
	switch ch.Op {
	case opCreate:
		if old != nil {
			return nil, object.Errorf(errdefs.ErrAlreadyExists, "%s %s already exists", ch.Kind, id)
		}
		*o.Metadata() = swarm.Meta{CreatedAt: c.Time, UpdatedAt: c.Time}
	case opUpdate, opDelete:
		if old == nil {
			return nil, &goneError{ch.Kind, id}
		}
		was := old.Metadata()
		if was.Version.Index != ch.Version {
			return nil, ErrSequence
		}
		if o != nil {
			*o.Metadata() = swarm.Meta{CreatedAt: was.CreatedAt, UpdatedAt: c.Time}
		}
	}
	d.keys = append(d.keys, Key{ch.Kind, id})
	if o == nil {
		d.remove(old)
		return nil, nil
	}
	o.Metadata().Version.Index = d.Index
	d.store(o)
	return o, nil
}

// goneError is met by a change to an object that was deleted meanwhile.
type goneError struct {
	kind object.Kind
	id   string
}

func (e *goneError) Error() string   { return fmt.Sprintf("%s %s not found", e.kind, e.id) }
func (e *goneError) Unwrap() []error { return []error{ErrSequence, errdefs.ErrNotFound} }

// fillSpecVersion keeps the invariant that a service's revision is the one with
// its SpecVersion: both are written in one transaction, with none.
func fillSpecVersion(o object.Object, index uint64) {
	switch o := o.(type) {
	case *object.Service:
		if o.SpecVersion.Index == 0 {
			o.SpecVersion.Index = index
		}
	case *object.Revision:
		if o.SpecVersion.Index == 0 {
			o.SpecVersion.Index = index
		}
	default:
	}
}

func (d *draft) store(o object.Object) {
	switch o := o.(type) {
	case *object.Cluster:
		own(d, &d.Clusters).put(o)
	case *object.Node:
		own(d, &d.Nodes).put(o)
	case *object.Service:
		own(d, &d.Services).put(o)
	case *object.Revision:
		own(d, &d.Revisions).put(o)
	case *object.Task:
		d.intern(o)
		own(d, &d.Tasks).put(o)
	case *object.Secret:
		own(d, &d.Secrets).put(o)
	case *object.Config:
		own(d, &d.Configs).put(o)
	case *object.Network:
		own(d, &d.Networks).put(o)
	case *object.Guest:
		own(d, &d.Guests).put(o)
	}
}

func (d *draft) remove(o object.Object) {
	switch o := o.(type) {
	case *object.Cluster:
		own(d, &d.Clusters).drop(o)
	case *object.Node:
		own(d, &d.Nodes).drop(o)
	case *object.Service:
		own(d, &d.Services).drop(o)
	case *object.Revision:
		own(d, &d.Revisions).drop(o)
	case *object.Task:
		own(d, &d.Tasks).drop(o)
	case *object.Secret:
		own(d, &d.Secrets).drop(o)
	case *object.Config:
		own(d, &d.Configs).drop(o)
	case *object.Network:
		own(d, &d.Networks).drop(o)
	case *object.Guest:
		own(d, &d.Guests).drop(o)
	}
}

// own makes a table the draft's own before it is changed.
func own[T object.Object](d *draft, t **Table[T]) *Table[T] {
	if k := (*t).schema.kind; !d.drafted[k] {
		d.drafted[k] = true
		*t = (*t).draft()
	}
	return *t
}

// intern makes a task share the strings that thousands of tasks have in common.
func (d *draft) intern(t *object.Task) {
	if s, ok := d.Services.Get(t.ServiceID); ok {
		t.ServiceID = s.ID
	}
	if n, ok := d.Nodes.Get(t.NodeID); ok {
		t.NodeID = n.ID
	}
	t.DesiredState = object.State(t.DesiredState)
	t.Status.State = object.State(t.Status.State)
}

func (d *draft) checkName(o object.Object) error {
	switch o := o.(type) {
	case *object.Service:
		return taken(d.Services, o, "name conflicts with an existing object: ")
	case *object.Secret:
		return taken(d.Secrets, o, "")
	case *object.Config:
		return taken(d.Configs, o, "")
	case *object.Network:
		return d.networkTaken(o)
	default:
		return nil
	}
}

// networkTaken allows a network to have the name of one that is being removed.
func (d *draft) networkTaken(n *object.Network) error {
	for other := range d.Networks.By(ByName, n.Spec.Name) {
		if other.ID != n.ID && !other.PendingDelete && !n.PendingDelete {
			return object.Errorf(errdefs.ErrAlreadyExists, "network with name %s already exists", n.Spec.Name)
		}
	}
	return nil
}

func taken[T object.Object](t *Table[T], o T, prefix string) error {
	for other := range t.By(ByName, Name(o)) {
		if other.Key() != o.Key() {
			return object.Errorf(errdefs.ErrAlreadyExists, "%s%s %s already exists", prefix, o.Kind(), Name(o))
		}
	}
	return nil
}
