package ca

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki/join"
	"skep/store"
	"skep/store/object"
)

const (
	// maxSkew is how far a node's clock may be off: certificates begin that
	// long before they are made.
	maxSkew = time.Hour
	// repeatable is how long an answer to a join may be asked for again.
	repeatable = 10 * time.Minute
)

// Join makes the machine at source a node. The same request again, after an
// answer that was lost, is the same node.
func (c *CA) Join(ctx context.Context, source netip.Addr, req *wire.JoinRequest) (*wire.JoinReply, error) {
	now := time.Now()
	from := network(source)
	if err := c.sources.admit(from, now); err != nil {
		return nil, err
	}
	reply, err := c.join(ctx, source, req, now)
	if err != nil {
		if _, bad := errors.AsType[*tokenError](err); bad {
			c.sources.punish(from, now)
		}
		c.cfg.Logger.WarnContext(ctx, "refused to let a machine join", "source", source, "host", req.Hostname, "err", err)
		return nil, err
	}
	c.cfg.Logger.InfoContext(ctx, "let a machine join", "source", source, "host", req.Hostname, "addr", req.Addr, "node", reply.NodeID, "role", reply.Role)
	return reply, nil
}

func (c *CA) join(ctx context.Context, source netip.Addr, req *wire.JoinRequest, now time.Time) (*wire.JoinReply, error) {
	cluster := c.cfg.Store.Snapshot().Cluster()
	if cluster == nil {
		return nil, errNoSwarm()
	}
	role, err := grant(cluster.JoinTokens, req.Token)
	if err != nil {
		return nil, err
	}
	if err = checkClock(req.Clock, now); err != nil {
		return nil, err
	}
	if err = checkJoin(req); err != nil {
		return nil, err
	}
	r, err := parseRequest(req.CSR)
	if err != nil {
		return nil, err
	}
	done, err := c.enter(ctx, r.hash)
	if err != nil {
		return nil, err
	}
	defer done()
	snap := c.cfg.Store.Snapshot()
	if n := byKey(snap, r.hash); n != nil {
		// Asked again, or somebody repeats what he overheard: it gets the same
		// certificate, which is of no use without the key, or nothing.
		if n.Status.State != swarm.NodeStateUnknown || n.Spec.Role != role || now.Sub(n.CreatedAt) > repeatable {
			return nil, object.Errorf(errdefs.ErrAlreadyExists, "a node with this key is already part of the swarm: it is %s", n.ID)
		}
		return c.answer(c.again(ctx, snap, n, r))
	}
	return c.answer(c.record(ctx, snap, newNode(source, req, role, r), r, func(tx *store.Tx, n *object.Node) { tx.Create(n) }))
}

func newNode(source netip.Addr, req *wire.JoinRequest, role swarm.NodeRole, r *request) *object.Node {
	n := &object.Node{CertRole: role, KeyHash: r.hash[:]}
	n.ID = object.NewID()
	n.Spec = swarm.NodeSpec{Role: role, Availability: req.Availability}
	n.Spec.Labels = map[string]string{}
	if n.Spec.Availability == "" {
		n.Spec.Availability = swarm.NodeAvailabilityActive
	}
	n.Description.Hostname = req.Hostname
	n.Status.State = swarm.NodeStateUnknown
	if source.IsValid() {
		n.Status.Addr = source.Unmap().String()
	}
	return n
}

// grant is the role that a token gives. It takes as long for one token as for
// another.
func grant(tokens swarm.JoinTokens, text string) (swarm.NodeRole, error) {
	if _, err := join.Parse(text); err != nil {
		return "", &tokenError{object.Errorf(errdefs.ErrInvalidArgument, "%w", err)}
	}
	sum := sha256.Sum256([]byte(text))
	match := func(live string) int {
		s := sha256.Sum256([]byte(live))
		return subtle.ConstantTimeCompare(sum[:], s[:])
	}
	worker, manager := match(tokens.Worker), match(tokens.Manager)
	switch {
	case worker == 1:
		return swarm.NodeRoleWorker, nil
	case manager == 1:
		return swarm.NodeRoleManager, nil
	}
	return "", &tokenError{object.Errorf(errdefs.ErrPermissionDenied, "A valid join token is necessary to join this cluster")}
}

// checkClock refuses nodes to which their certificate would not be valid.
func checkClock(theirs, now time.Time) error {
	if theirs.IsZero() {
		return nil
	}
	off := theirs.Sub(now).Round(time.Second)
	if off.Abs() <= maxSkew {
		return nil
	}
	word := "ahead of"
	if off < 0 {
		word = "behind"
	}
	return object.Errorf(errdefs.ErrInvalidArgument,
		"the node's clock is %s %s the swarm's; certificates bear %s: set the clock and try again", off.Abs(), word, maxSkew)
}

// longest is the number of bytes in the longest name or address.
const longest = 255

func checkJoin(req *wire.JoinRequest) error {
	switch req.Availability {
	case "", swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
	default:
		return object.Errorf(errdefs.ErrInvalidArgument, "invalid Availability: %q", req.Availability)
	}
	if n := max(len(req.Hostname), len(req.Addr)); n > longest {
		return object.Errorf(errdefs.ErrInvalidArgument, "a name or address of %d bytes is too long", n)
	}
	return nil
}

// tokenError marks the refusals that make a source wait.
type tokenError struct{ error }

func (e *tokenError) Unwrap() error { return e.error }
