package ca

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skep/appliance/manager/loop"
	"skep/pki"
	"skep/store"
	"skep/store/object"
)

// patience is how long to wait after a change of root could not begin.
const patience = 10 * time.Second

// Run carries out the changes of the root that the swarm's spec asks for,
// until ctx ends or the store fails.
func (c *CA) Run(ctx context.Context) error {
	pace := rhythm{c.cfg.Batch, c.cfg.Pause}
	for {
		ch := c.cfg.Store.Since(0)
		now := time.Now()
		s := plan(ch.Snapshot, now, pace)
		tx, err := c.prepare(ctx, ch.Snapshot, s, now, pace)
		if err != nil {
			c.cfg.Logger.WarnContext(ctx, "could not change the root", "step", s.do, "err", err)
			if err := loop.Wait(ctx, nil, now.Add(patience)); err != nil {
				return err
			}
			continue
		}
		if tx != nil {
			_, err := c.cfg.Store.Propose(ctx, tx)
			if err == nil {
				c.tell(ctx, s)
				continue
			}
			if !errors.Is(err, store.ErrSequence) {
				return fmt.Errorf("change root: %w", err)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			continue
		}
		if err := loop.Wait(ctx, ch.News, s.next); err != nil {
			return err
		}
	}
}

// prepare makes the command of a step, if it has one.
func (c *CA) prepare(ctx context.Context, snap *store.Snapshot, s step, now time.Time, pace rhythm) (*store.Tx, error) {
	tx := store.Begin(snap)
	switch s.do {
	case none:
		return nil, nil
	case begin:
		cluster := snap.Cluster().Clone().(*object.Cluster)
		if err := c.begin(ctx, cluster, now); err != nil {
			return nil, err
		}
		tx.Update(cluster)
	default:
		if err := apply(tx, s, now, pace); err != nil {
			return nil, err
		}
	}
	return tx, nil
}

// begin starts the change that the spec asks for, whatever else is under way.
func (c *CA) begin(ctx context.Context, cluster *object.Cluster, now time.Time) error {
	cfg, r := &cluster.Spec.CAConfig, &cluster.RootCA
	old, err := pki.ParseRoot(r.Cert, r.Key)
	if err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	next, err := successor(cfg.SigningCACert, cfg.SigningCAKey, old, now)
	if err != nil {
		return err
	}
	key, err := next.KeyPEM()
	if err != nil {
		return err
	}
	r.Forced = cfg.ForceRotate
	cfg.SigningCACert, cfg.SigningCAKey = "", ""
	rot := &object.RootRotation{
		ID: object.NewID(), Phase: object.RotationTrust, Cert: next.PEM(), Key: key,
		Started: now.UnixNano(), Deadline: now.Add(trustGrace).UnixNano(),
	}
	switch {
	case r.Rotation != nil && string(r.Rotation.Cert) == string(rot.Cert):
		r.Rotation.Key = key
		return nil
	case next.Cert.Equal(old.Cert) && r.Rotation == nil:
		r.Key = key
		return nil
	case next.Cert.Equal(old.Cert):
		rot.Cert = r.Cert
	default:
		if rot.Cross, err = c.crossSign(ctx, cluster, old, next, now); err != nil {
			return err
		}
	}
	r.Rotation = rot
	return nil
}

// successor is the root that is given, or a new one.
func successor(certPEM, keyPEM string, old *pki.Root, now time.Time) (*pki.Root, error) {
	if certPEM == "" {
		return pki.NewRoot(now)
	}
	if _, err := pki.CheckSuccessor([]byte(certPEM), old.Cert, now); err != nil {
		return nil, err
	}
	return pki.ParseRoot([]byte(certPEM), []byte(keyPEM))
}

// crossSign puts the new root's key under the old root.
func (c *CA) crossSign(ctx context.Context, cluster *object.Cluster, old, next *pki.Root, now time.Time) ([]byte, error) {
	if len(cluster.RootCA.Key) == 0 {
		return c.external(&cluster.Spec.CAConfig, old.Cert, cluster.RootCA.Cert).crossSign(ctx, next)
	}
	cross, err := old.CrossSign(next.Cert, now)
	if err != nil {
		return nil, err
	}
	return cross, pki.CheckCross(cross, next.Cert, old.Cert)
}

// tell is the operator's record of the change.
func (c *CA) tell(ctx context.Context, s step) {
	switch s.do {
	case begin:
		c.cfg.Logger.InfoContext(ctx, "began to change the root")
	case issue:
		c.cfg.Logger.InfoContext(ctx, "nodes trust the new root", "behind", names(s.nodes))
	case ask:
		c.cfg.Logger.InfoContext(ctx, "asked nodes to renew their certificates", "count", len(s.nodes))
	case finish:
		c.cfg.Logger.InfoContext(ctx, "changed the root", "behind", names(s.nodes))
	default:
	}
}

func names(nodes []*object.Node) []string {
	ids := make([]string, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return ids
}
