package wire

import (
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/fxamacker/cbor/v2"
	"github.com/moby/moby/api/types/swarm"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/pki/identity"
	"skep/store/object"
)

// Protocol is the version of the protocol that this package speaks.
const Protocol = 1

// Message is what one frame holds.
//
// Invariant: exactly one field is set.
type Message struct {
	Hello       *Hello       `cbor:"1,keyasint,omitempty"`
	Welcome     *Welcome     `cbor:"2,keyasint,omitempty"`
	Refusal     *Refusal     `cbor:"3,keyasint,omitempty"`
	Beat        *Beat        `cbor:"4,keyasint,omitempty"`
	Assignments *Assignments `cbor:"5,keyasint,omitempty"`
	Statuses    *Statuses    `cbor:"6,keyasint,omitempty"`
	Acknowledge *Acknowledge `cbor:"7,keyasint,omitempty"`
	Describe    *Describe    `cbor:"8,keyasint,omitempty"`
	Swarm       *Swarm       `cbor:"9,keyasint,omitempty"`
	Invite      *Invite      `cbor:"10,keyasint,omitempty"`
	Holdings    *Holdings    `cbor:"11,keyasint,omitempty"`
	Nodes       *Nodes       `cbor:"12,keyasint,omitempty"`
	Bye         *Bye         `cbor:"13,keyasint,omitempty"`
	Networks    *Networks    `cbor:"14,keyasint,omitempty"`
	Programmed  *Programmed  `cbor:"15,keyasint,omitempty"`
	Tunnels     *Tunnels     `cbor:"16,keyasint,omitempty"`
}

// Hello opens a session.
type Hello struct {
	Protocol    int
	Description swarm.NodeDescription
	// Member is set by nodes that are ready to be, or are, replicas.
	Member *Member
	// DataPath is the IP address for the traffic between containers.
	DataPath string
	// Boot is another one whenever the node's kernel has lost the keys of its
	// [Tunnels].
	Boot string
	// Instance tells the processes that have the node's identity apart: a new
	// one each time the node starts.
	Instance string
}

// Member is a node as a replica of the store.
type Member struct {
	RaftID string
	Addr   string // host:port where the node's control port is reached
}

// Peer is a node and where it is reached: a manager by host:port.
type Peer = identity.Peer

// Swarm is what every node is to know of its swarm. It follows the welcome, and
// again whenever it changes.
type Swarm struct {
	Managers []Peer
	// Epoch is the swarm's: a worker takes it over.
	Epoch uint64
	// Roots are the certificates, in PEM, of the roots to trust.
	Roots []byte
	// Role is what the node is to be. If its certificate says otherwise, or is
	// of an older generation than Renew, it is to ask for another.
	Role  swarm.NodeRole
	Renew uint64
	// GossipVersion and GossipKeys are the keys of the gossip; the first is the
	// one to send with.
	GossipVersion uint64
	GossipKeys    [][]byte
	// DataPathPort is the UDP port of the traffic between containers.
	DataPathPort uint32
}

// Nodes are the members of the swarm and where they are: all of them (Complete)
// or those that are new, or elsewhere now, and those that are gone.
//
// Invariant: the last part, the one without More, makes the list whole.
type Nodes struct {
	Complete bool
	More     bool
	Items    []Peer // Addr is an IP address alone
	Gone     []string
}

// Invite asks the node to open a stream of that name to the manager.
type Invite struct{ Stream string }

// Holdings are the images that a node has: all of them (Complete) or those that
// came and went.
type Holdings struct {
	Complete bool
	Images   []Image
	Gone     []digest.Digest
}

// Image is an image that a node has whole.
type Image struct {
	// Descriptor is that of the manifest or the index.
	Descriptor ocispec.Descriptor
	Names      []string // canonical, with a tag
	Platforms  []ocispec.Platform
}

// Welcome is the answer to a Hello.
type Welcome struct {
	Session string
	Period  time.Duration // of the first beat
}

// Refusal ends a session and says why.
type Refusal struct {
	Kind Kind
	Text string
}

// Beat says that a side is alive. From the manager it holds the time until the
// next beat is due, from the node the version of the gossip's keys that it has.
type Beat struct {
	Period time.Duration
	Keys   uint64 `cbor:",omitempty"`
}

// Describe says that the node has changed.
type Describe struct {
	Description swarm.NodeDescription
	// Member is as in Hello: it comes and goes with the node's role.
	Member   *Member
	DataPath string // as in Hello, and so is Boot
	Boot     string
}

// Bye says that the node leaves the swarm. The manager ends the session.
type Bye struct{}

// Acknowledge says that a set of assignments is stored on the node (ResultsIn)
// or that statuses are in the swarm's store (Statuses).
type Acknowledge struct {
	ResultsIn string
	Statuses  uint64
}

// Statuses are how far the node's tasks are.
type Statuses struct {
	Sequence uint64
	Tasks    []TaskStatus
}

// TaskStatus is how far a task is.
type TaskStatus struct {
	ID     string
	Status swarm.TaskStatus
}

// Assignments is what a node is to do: everything (Complete) or what changed.
//
// Invariant: an incremental set applies to the node's state only if AppliesTo
// is the ResultsIn of the set before. A set is in force when its last part,
// the one without More, is there.
type Assignments struct {
	Complete  bool
	AppliesTo string
	ResultsIn string
	More      bool
	Items     []Item
}

// Item is one object of a set: a task, or what tasks refer to. Without Data it
// is to be forgotten.
type Item struct {
	Kind object.Kind
	Key  string
	Data cbor.RawMessage `cbor:",omitempty"`
}

// Kind says what sort of refusal it is.
type Kind string

// The kinds of refusals.
const (
	NotFound    Kind = "not found"
	Exhausted   Kind = "resource exhausted"
	Unavailable Kind = "unavailable"
	Invalid     Kind = "invalid"
	Denied      Kind = "permission denied"
	// Expelled and Superseded are denials that the node must act on.
	Expelled   Kind = "removed"
	Superseded Kind = "superseded"
)

var (
	// ErrExpelled says that the node was removed from its swarm.
	ErrExpelled = object.Errorf(errdefs.ErrPermissionDenied, "the node was removed from the swarm")
	// ErrSuperseded says that the swarm was recovered by force, and that the
	// node is a manager of what was before.
	ErrSuperseded = object.Errorf(errdefs.ErrPermissionDenied, "the swarm was recovered without the node")
)

// Err is the refusal as an error of its kind.
func (r *Refusal) Err() error { return object.Errorf(r.kind(), "%s", r.Text) }

func (r *Refusal) kind() error {
	switch r.Kind {
	case NotFound:
		return errdefs.ErrNotFound
	case Exhausted:
		return errdefs.ErrResourceExhausted
	case Unavailable:
		return errdefs.ErrUnavailable
	case Invalid:
		return errdefs.ErrInvalidArgument
	case Denied:
		return errdefs.ErrPermissionDenied
	case Expelled:
		return ErrExpelled
	case Superseded:
		return ErrSuperseded
	default:
		return errdefs.ErrUnknown
	}
}

// Refuse makes an error a refusal: only its kind and text cross the wire.
func Refuse(err error) *Refusal {
	r := &Refusal{Kind: Unavailable, Text: err.Error()}
	switch {
	case errors.Is(err, ErrExpelled):
		r.Kind = Expelled
	case errors.Is(err, ErrSuperseded):
		r.Kind = Superseded
	case errdefs.IsNotFound(err):
		r.Kind = NotFound
	case errdefs.IsResourceExhausted(err):
		r.Kind = Exhausted
	case errdefs.IsInvalidArgument(err):
		r.Kind = Invalid
	case errdefs.IsPermissionDenied(err):
		r.Kind = Denied
	}
	return r
}

var errParts = errors.New("message does not have exactly one part")

func (m *Message) check() error {
	set := 0
	for _, f := range reflect.ValueOf(m).Elem().Fields() {
		if !f.IsNil() {
			set++
		}
	}
	if set != 1 {
		return errParts
	}
	return nil
}

// Pack makes an item of an object.
func Pack(o object.Object) (Item, error) {
	data, err := object.Encode(o)
	if err != nil {
		return Item{}, fmt.Errorf("encode %s %s: %w", o.Kind(), o.Key(), err)
	}
	return Item{Kind: o.Kind(), Key: o.Key(), Data: data}, nil
}

// Unpack is the object in an item.
func (i Item) Unpack() (object.Object, error) {
	o := object.New(i.Kind)
	if o == nil {
		return nil, fmt.Errorf("decode assignment: kind %q is not known", i.Kind)
	}
	if err := object.Decode(i.Data, o); err != nil {
		return nil, fmt.Errorf("decode %s %s: %w", i.Kind, i.Key, err)
	}
	if o.Key() != i.Key {
		return nil, fmt.Errorf("decode %s %s: it is %s", i.Kind, i.Key, o.Key())
	}
	return o, nil
}

// Parts cuts a set into messages whose frames are small enough.
func (a *Assignments) Parts() []*Assignments {
	const room = MaxFrame - 4096
	var parts []*Assignments
	part, size := &Assignments{Complete: a.Complete, AppliesTo: a.AppliesTo, ResultsIn: a.ResultsIn}, 0
	for _, i := range a.Items {
		n := len(i.Data) + len(i.Key) + 64
		if size+n > room && len(part.Items) > 0 {
			part.More = true
			parts = append(parts, part)
			part, size = &Assignments{Complete: a.Complete, AppliesTo: a.AppliesTo, ResultsIn: a.ResultsIn}, 0
		}
		part.Items = append(part.Items, i)
		size += n
	}
	return append(parts, part)
}
