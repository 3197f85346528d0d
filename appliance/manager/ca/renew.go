package ca

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

const (
	// grace is how long after its end a certificate proves enough to enrol again.
	grace = 30 * 24 * time.Hour
	// tries is how often a change of a node is begun again because others
	// changed the node meanwhile.
	tries = 10
)

// Renew gives the node from, at the other end of a connection, the certificate
// of a new key, in the role that it is to have.
func (c *CA) Renew(ctx context.Context, from pki.Node, req *wire.RenewRequest) (*wire.RenewReply, error) {
	if err := c.nodes.admit(from.ID, time.Now()); err != nil {
		return nil, err
	}
	i, err := c.replace(ctx, req.CSR, func(snap *store.Snapshot, r *request) (*object.Node, bool, error) {
		n, err := standing(snap, from)
		if err != nil {
			return nil, false, err
		}
		asked := string(n.KeyHash) == string(r.hash[:])
		if asked && from.Generation >= n.Generation {
			return nil, false, object.Errorf(errdefs.ErrInvalidArgument, "a renewal needs a new key")
		}
		return n, asked, nil
	})
	if err != nil {
		return nil, err
	}
	c.cfg.Logger.InfoContext(ctx, "renewed certificate", "node", from.ID, "role", i.node.CertRole)
	return &wire.RenewReply{Certificate: i.cert, Roots: Roots(&i.snap.Cluster().RootCA), Role: i.node.CertRole}, nil
}

// Reenrol gives a node a certificate whose own has expired, or whose root was
// replaced while it was away.
func (c *CA) Reenrol(ctx context.Context, source netip.Addr, req *wire.ReenrolRequest) (*wire.JoinReply, error) {
	now := time.Now()
	from := network(source)
	if err := c.sources.admit(from, now); err != nil {
		return nil, err
	}
	if err := checkClock(req.Clock, now); err != nil {
		return nil, err
	}
	chain, err := pki.ParseChain(req.Chain)
	if err != nil || len(chain) > maxChain {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "the former certificate cannot be read")
	}
	if err = pki.CheckEndorsement(req.CSR, req.Signature, chain[0]); err != nil {
		c.sources.punish(from, now)
		return nil, object.Errorf(errdefs.ErrPermissionDenied, "enrol again: %w", err)
	}
	i, err := c.replace(ctx, req.CSR, func(snap *store.Snapshot, r *request) (*object.Node, bool, error) {
		return returning(snap, chain, r, now)
	})
	if err != nil {
		c.cfg.Logger.WarnContext(ctx, "refused to enrol a node again", "source", source, "node", chain[0].Subject.CommonName, "err", err)
		return nil, err
	}
	c.cfg.Logger.InfoContext(ctx, "enrolled a node again", "source", source, "node", i.node.ID, "role", i.node.CertRole)
	return c.answer(i, nil)
}

// maxChain is the most certificates in a chain: one for each change of root.
const maxChain = 16

// replace gives a node that find knows a certificate for another key. find also
// tells whether it was issued before, and the answer only lost.
func (c *CA) replace(ctx context.Context, csr []byte, find func(*store.Snapshot, *request) (n *object.Node, asked bool, err error)) (*issued, error) {
	r, err := parseRequest(csr)
	if err != nil {
		return nil, err
	}
	done, err := c.enter(ctx, r.hash)
	if err != nil {
		return nil, err
	}
	defer done()
	for range tries {
		snap := c.cfg.Store.Snapshot()
		n, asked, err := find(snap, r)
		if err != nil {
			return nil, err
		}
		if asked && n.CertRole == Role(n) {
			return c.again(ctx, snap, n, r)
		}
		if other := byKey(snap, r.hash); other != nil && other.ID != n.ID {
			return nil, object.Errorf(errdefs.ErrAlreadyExists, "the key is that of another node")
		}
		n = n.Clone().(*object.Node)
		n.CertRole = Role(n)
		i, err := c.record(ctx, snap, n, r, func(tx *store.Tx, n *object.Node) { tx.Update(n) })
		if !errors.Is(err, store.ErrSequence) {
			return i, err
		}
	}
	return nil, object.Errorf(errdefs.ErrUnavailable, "the node is being changed by others; try again")
}

// standing is the node that a certificate speaks for.
func standing(snap *store.Snapshot, from pki.Node) (*object.Node, error) {
	c := snap.Cluster()
	if c == nil {
		return nil, errNoSwarm()
	}
	n, ok := snap.Nodes.Get(from.ID)
	switch {
	case from.Cluster != c.ID:
		return nil, object.Errorf(errdefs.ErrPermissionDenied, "Permission denied: node %s is of another swarm", from.ID)
	case !ok:
		return nil, object.Errorf(wire.ErrExpelled, "Permission denied: node %s was removed from swarm", from.ID)
	case from.Generation < n.MinGeneration:
		return nil, object.Errorf(errdefs.ErrPermissionDenied, "Permission denied: the certificate of node %s was revoked", from.ID)
	}
	return n, nil
}

// returning is the node to which a former certificate belonged, if it may have
// another for it.
func returning(snap *store.Snapshot, chain []*x509.Certificate, r *request, now time.Time) (*object.Node, bool, error) {
	c := snap.Cluster()
	if c == nil {
		return nil, false, errNoSwarm()
	}
	who, err := former(&c.RootCA, chain, now)
	if err != nil {
		return nil, false, object.Errorf(errdefs.ErrPermissionDenied, "enrol again: %w", err)
	}
	n, err := standing(snap, who)
	if err != nil {
		return nil, false, err
	}
	asked := string(n.KeyHash) == string(r.hash[:])
	// An older certificate of a manager may have been stolen: only the last is
	// believed, or who holds the key that came after it.
	if Role(n) == swarm.NodeRoleManager && who.Generation < n.Generation && !asked {
		return nil, false, object.Errorf(errdefs.ErrPermissionDenied, "enrol again: it is not the last certificate of manager %s", n.ID)
	}
	return n, asked, nil
}

// former reads a certificate that is no longer valid.
func former(r *object.RootCA, chain []*x509.Certificate, now time.Time) (pki.Node, error) {
	leaf := chain[0]
	if now.After(leaf.NotAfter.Add(grace)) {
		return pki.Node{}, fmt.Errorf("the certificate expired more than %d days ago", int(grace.Hours()/24))
	}
	then := now
	if !now.Before(leaf.NotAfter) {
		then = leaf.NotAfter.Add(-time.Second)
	}
	if trusted, err := pki.ParseChain(Roots(r)); err == nil {
		if who, err := pki.Verify(chain, trusted, then); err == nil {
			if then.Equal(now) {
				return pki.Node{}, errors.New("the certificate is still valid: renew it")
			}
			return who, nil
		}
	}
	for _, old := range r.Retired {
		root, err := pki.ParseChain(old.Cert)
		if err != nil || now.UnixNano() > old.Until {
			continue
		}
		if who, err := pki.Verify(chain, root, then); err == nil {
			return who, nil
		}
	}
	return pki.Node{}, errors.New("the certificate is not of this swarm")
}
