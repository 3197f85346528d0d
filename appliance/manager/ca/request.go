package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"

	"github.com/containerd/errdefs"

	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// request is a certificate request whose sender has proved to hold its key.
type request struct {
	csr  []byte
	key  crypto.PublicKey
	hash [32]byte // of the key
}

func parseRequest(csr []byte) (*request, error) {
	key, err := pki.ParseRequest(csr)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "%w", err)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "parse request: %w", err)
	}
	return &request{csr: csr, key: key, hash: sha256.Sum256(der)}, nil
}

// byKey is the node that was issued a certificate for a key last.
func byKey(snap *store.Snapshot, hash [32]byte) *object.Node {
	for n := range snap.Nodes.All() {
		if string(n.KeyHash) == string(hash[:]) {
			return n
		}
	}
	return nil
}

// enter waits until nobody else is busy with a key, so that two requests with
// the same one cannot both make a node of it.
func (c *CA) enter(ctx context.Context, hash [32]byte) (leave func(), err error) {
	for {
		c.mu.Lock()
		other, ok := c.busy[hash]
		if !ok {
			mine := make(chan struct{})
			c.busy[hash] = mine
			c.mu.Unlock()
			return func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				delete(c.busy, hash)
				close(mine)
			}, nil
		}
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}
