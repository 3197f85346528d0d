package membership

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/pki/identity"
)

// renew keeps the node's certificate valid, and makes it what the manager
// wants it to be.
func (s *stay) renew(ctx context.Context) error {
	for failed := 0; ctx.Err() == nil; {
		id, news := s.identity.get()
		due := pki.Next(id.Certificate.Leaf, time.Now(), rand.Float64(), failed)
		t := time.NewTimer(time.Until(due))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-news: // another certificate, or other roots: look again
			t.Stop()
			continue
		case <-s.renewal:
			t.Stop()
		case <-t.C:
		}
		err := s.renewOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		switch {
		case err == nil:
			failed = 0
		case errors.Is(err, errKeystore):
			return err
		default:
			failed++
			s.cfg.Logger.WarnContext(ctx, "could not renew the certificate", "err", err, "expires", id.Certificate.Leaf.NotAfter)
		}
	}
	return nil //nolint:nilerr // ctx has ended
}

// errKeystore is a failure to keep a new certificate: what the disk holds is
// not known any more.
var errKeystore = errors.New("keep certificate")

// renewOnce asks for the certificate of a new key, and makes it the node's own.
func (s *stay) renewOnce(ctx context.Context) error {
	csr, key, err := pki.NewRequest()
	if err != nil {
		return err
	}
	certificate, roots, err := s.issue(ctx, csr)
	if err != nil {
		return err
	}
	next := s.cfg.Keys.State()
	next.Key, next.Certificate, next.Roots = key, certificate, roots
	if err = checkIssued(next); err != nil {
		return err
	}
	before, _ := s.subject()
	err = s.cfg.Keys.Update(func(st *identity.State) error {
		st.Key, st.Certificate, st.Roots = next.Key, next.Certificate, next.Roots
		return nil
	})
	if err != nil {
		return errors.Join(errKeystore, err)
	}
	if err = s.adopt(); err != nil {
		return err
	}
	after, _ := s.subject()
	s.cfg.Logger.InfoContext(ctx, "renewed the certificate", "role", after.Role, "generation", after.Generation)
	if before.Role != after.Role {
		s.reconnect() // as what the node is now
	}
	return nil
}

func (s *stay) issue(ctx context.Context, csr []byte) (certificate, roots []byte, err error) {
	leaf := s.current().Certificate.Leaf
	if time.Now().After(leaf.NotAfter) {
		return s.reenrol(ctx, csr)
	}
	reply, err := s.askRenew(ctx, &wire.RenewRequest{CSR: csr})
	if control.Rejected(err) {
		return s.reenrol(ctx, csr) // the root was changed while the node was away
	}
	if err != nil {
		return nil, nil, err
	}
	return reply.Certificate, reply.Roots, nil
}

// askRenew asks the leader, in this process or not.
func (s *stay) askRenew(ctx context.Context, req *wire.RenewRequest) (*wire.RenewReply, error) {
	if h := s.half.Load(); h != nil && h.member.Leading() {
		self, err := s.subject()
		if err != nil {
			return nil, err
		}
		return h.ca.Renew(ctx, self, req)
	}
	return onLeader(ctx, s.peers, func(ctx context.Context, to wire.Peer) (*wire.RenewReply, error) {
		ctx, cancel := context.WithTimeout(ctx, asking)
		defer cancel()
		return control.Call[wire.RenewRequest, wire.RenewReply](ctx, s.dialer, to, "/renew", req)
	})
}

// reenrol is for a node whose certificate has expired, or is of a former root:
// it proves that it has the former key.
func (s *stay) reenrol(ctx context.Context, csr []byte) (certificate, roots []byte, err error) {
	st := s.cfg.Keys.State()
	key, err := pki.ParseKey(st.Key)
	if err != nil {
		return nil, nil, err
	}
	signature, err := pki.Endorse(csr, key)
	if err != nil {
		return nil, nil, err
	}
	req := &wire.ReenrolRequest{CSR: csr, Chain: st.Certificate, Signature: signature, Clock: time.Now()}
	reply, err := onLeader(ctx, s.peers, func(ctx context.Context, to wire.Peer) (*wire.JoinReply, error) {
		ctx, cancel := context.WithTimeout(ctx, asking)
		defer cancel()
		return control.CallAnonymous[wire.ReenrolRequest, wire.JoinReply](ctx, s.dialer, to, "/reenrol", req)
	})
	if err != nil {
		return nil, nil, err
	}
	return reply.Certificate, reply.Roots, nil
}
