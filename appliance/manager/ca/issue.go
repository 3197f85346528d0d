package ca

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// issued is a certificate that may be handed out.
type issued struct {
	cert []byte // PEM
	node *object.Node
	snap *store.Snapshot // has the node as it was recorded, or newer
}

// record writes that a node is issued a certificate for the request, and makes
// it. Nothing is written if no certificate can be made.
func (c *CA) record(ctx context.Context, snap *store.Snapshot, n *object.Node, r *request, write func(*store.Tx, *object.Node)) (*issued, error) {
	n.Generation, n.KeyHash = snap.Index+1, r.hash[:]
	cert, err := c.issue(ctx, snap, n, r, n.Generation)
	if err != nil {
		return nil, err
	}
	tx := store.Begin(snap)
	write(tx, n)
	index, err := c.cfg.Store.Propose(ctx, tx)
	if err != nil {
		return nil, err
	}
	after := c.cfg.Store.Snapshot()
	if index != n.Generation {
		// Others came between: their command may have changed the root, and has
		// the index that was thought to be this one's.
		if cert, err = c.issue(ctx, after, n, r, index); err != nil {
			return nil, err
		}
	}
	return &issued{cert, n, after}, nil
}

// again makes a certificate that was recorded before.
func (c *CA) again(ctx context.Context, snap *store.Snapshot, n *object.Node, r *request) (*issued, error) {
	cert, err := c.issue(ctx, snap, n, r, snap.Index)
	if err != nil {
		return nil, err
	}
	return &issued{cert, n, snap}, nil
}

// issue makes the certificate of a node, and what leads from it to the roots
// that nodes may know.
func (c *CA) issue(ctx context.Context, snap *store.Snapshot, n *object.Node, r *request, generation uint64) ([]byte, error) {
	cluster := snap.Cluster()
	if cluster == nil {
		return nil, errNoSwarm()
	}
	who := pki.Node{ID: n.ID, Cluster: cluster.ID, Role: pki.Worker, Generation: generation}
	if n.CertRole == swarm.NodeRoleManager {
		who.Role = pki.Manager
	}
	by := issuerOf(&cluster.RootCA)
	root, err := pki.ParseRoot(by.Cert, by.Key)
	if err != nil {
		return nil, fmt.Errorf("read root: %w", err)
	}
	var cert []byte
	if len(by.Key) == 0 {
		cert, err = c.external(&cluster.Spec.CAConfig, root.Cert, cluster.RootCA.Cert).sign(ctx, who, r)
	} else {
		expiry := cluster.Spec.CAConfig.NodeCertExpiry
		if expiry == 0 {
			expiry = pki.DefaultExpiry
		}
		cert, err = root.Issue(who, r.key, time.Now(), expiry)
	}
	if err != nil {
		return nil, err
	}
	return append(cert, by.chain(who.Role)...), nil
}

// issuer is the root that certificates are issued by.
type issuer struct {
	Cert, Key []byte
	cross     []byte   // its key under the root that it takes the place of
	retired   [][]byte // the same of former roots
}

func issuerOf(r *object.RootCA) issuer {
	i := issuer{Cert: r.Cert, Key: r.Key}
	for _, old := range r.Retired {
		i.retired = append(i.retired, old.Cross)
	}
	if rot := r.Rotation; rot != nil && rot.Phase == object.RotationIssue {
		i.Cert, i.Key, i.cross = rot.Cert, rot.Key, rot.Cross
	}
	return i
}

// chain is what a node shows with its certificate. Managers are also to be
// believed by nodes that were away while the root changed.
func (i issuer) chain(role string) []byte {
	chain := append([]byte(nil), i.cross...)
	if role == pki.Manager {
		for _, c := range i.retired {
			chain = append(chain, c...)
		}
	}
	return chain
}

// Roots are the certificates, in PEM, of the roots that nodes are to trust.
func Roots(r *object.RootCA) []byte {
	roots := append([]byte(nil), r.Cert...)
	if rot := r.Rotation; rot != nil && string(rot.Cert) != string(r.Cert) {
		roots = append(roots, rot.Cert...)
	}
	return roots
}

// Swarm is what a node is to know of the authority, and to be: the roots to
// trust, its role, and the generation that its certificate must have at least.
func Swarm(snap *store.Snapshot, n *object.Node) (roots []byte, role swarm.NodeRole, renew uint64) {
	if c := snap.Cluster(); c != nil {
		roots = Roots(&c.RootCA)
	}
	return roots, Role(n), max(n.Renew, n.MinGeneration)
}

// Role is what a node's certificate is to say. A manager that is demoted
// remains one until it was taken out of the replicas and its status forgotten.
func Role(n *object.Node) swarm.NodeRole {
	if n.Spec.Role == swarm.NodeRoleManager || n.ManagerStatus != nil {
		return swarm.NodeRoleManager
	}
	return swarm.NodeRoleWorker
}

// answer makes a node of whoever was issued a certificate.
func (c *CA) answer(i *issued, err error) (*wire.JoinReply, error) {
	if err != nil {
		return nil, err
	}
	cluster := i.snap.Cluster()
	reply := &wire.JoinReply{
		NodeID: i.node.ID, ClusterID: cluster.ID, Role: i.node.CertRole, Epoch: cluster.Epoch,
		Certificate: i.cert, Roots: Roots(&cluster.RootCA),
	}
	for n := range i.snap.Nodes.All() {
		if n.ManagerStatus == nil || n.ManagerStatus.Addr == "" {
			continue
		}
		p := wire.Peer{NodeID: n.ID, Addr: n.ManagerStatus.Addr}
		reply.Managers = append(reply.Managers, p)
		if n.ID == c.cfg.NodeID {
			reply.Leader = p
		}
	}
	return reply, nil
}

func errNoSwarm() error { return object.Errorf(errdefs.ErrUnavailable, "the swarm is being set up") }
