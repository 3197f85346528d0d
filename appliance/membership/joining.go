package membership

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/pki/identity"
	"skep/pki/join"
	"skep/store/object"
)

const (
	minRetry = 100 * time.Millisecond
	maxRetry = 5 * time.Second
)

// joining is a wish to join a swarm. Its key is made once: who asks again with
// the same key is the same node.
type joining struct {
	token        func() (string, error)
	managers     []string // host:port
	asked        asked
	availability swarm.NodeAvailability
	csr, key     []byte
	// patient goes on whatever the answer is: a file may be mended, a token
	// may be written later.
	patient bool
}

// attempt is a joining that goes on.
type attempt struct {
	cancel  context.CancelCauseFunc
	problem current[error]
}

func (m *Membership) joiningOf(req swarm.JoinRequest) (*joining, error) {
	j := &joining{
		token:    func() (string, error) { return req.JoinToken, nil },
		managers: req.RemoteAddrs, availability: req.Availability,
		asked: asked{req.ListenAddr, req.AdvertiseAddr, req.DataPathAddr},
	}
	if _, err := join.Parse(req.JoinToken); err != nil {
		return nil, object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	if _, err := m.addressesFor(j.asked, j.managers[0]); err != nil {
		return nil, err
	}
	var err error
	j.csr, j.key, err = pki.NewRequest()
	return j, err
}

// joiningOfFile is the node file's join section.
func (m *Membership) joiningOfFile() (*joining, error) {
	f := m.cfg.File
	j := &joining{
		token: func() (string, error) {
			b, err := f.Join.Token.Read()
			return string(bytes.TrimSpace(b)), err
		},
		managers: f.Join.Managers, asked: asked{f.Listen, f.Advertise, f.DataPath.Address},
		availability: swarm.NodeAvailability(f.Availability), patient: true,
	}
	var err error
	j.csr, j.key, err = pki.NewRequest()
	return j, err
}

// join makes the node a member of somebody else's swarm. It tries until it
// succeeds, is refused for good, or is told to stop.
func (m *Membership) join(ctx context.Context, j *joining) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	a := &attempt{cancel: cancel}
	m.trying.Store(a)
	defer m.trying.Store(nil)
	for retry := minRetry; ; retry = min(2*retry, maxRetry) {
		err := m.joinOnce(ctx, j)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if !j.patient && (!passing(err) || untimely(err)) {
			return err
		}
		a.problem.set(err)
		m.cfg.Logger.WarnContext(ctx, "could not join the swarm", "managers", j.managers, "err", err)
		if err := pause(ctx, retry); err != nil {
			return err
		}
	}
}

// passing tells a failure that may pass from a refusal.
func passing(err error) bool {
	if _, ok := errors.AsType[*control.FingerprintError](err); ok {
		return false
	}
	return !errdefs.IsInvalidArgument(err) && !errdefs.IsPermissionDenied(err) && !errdefs.IsUnauthorized(err) &&
		!errdefs.IsNotImplemented(err) && !errdefs.IsConflict(err) && !errdefs.IsAlreadyExists(err)
}

// untimely tells that a certificate is not valid yet: a clock is wrong. Another
// manager's may be right.
func untimely(err error) bool {
	e, ok := errors.AsType[*pki.ClockError](err)
	return ok && e.Now.Before(e.NotBefore)
}

func (m *Membership) joinOnce(ctx context.Context, j *joining) error {
	text, err := j.token()
	if err != nil {
		return fmt.Errorf("read join token: %w", err)
	}
	token, err := join.Parse(text)
	if err != nil {
		return object.Errorf(errdefs.ErrInvalidArgument, "%v", err)
	}
	var errs []error
	tried := map[string]bool{}
	for queue := j.managers; len(queue) > 0; {
		to := withPort(queue[0])
		queue = queue[1:]
		if tried[to] {
			continue
		}
		tried[to] = true
		err := m.joinAt(ctx, j, token, to)
		if err == nil {
			return nil
		}
		if leader, ok := redirected(err); ok {
			queue = append([]string{leader.Addr}, queue...)
		}
		if !passing(err) {
			return err
		}
		errs = append(errs, fmt.Errorf("%s: %w", to, err))
	}
	return errors.Join(errs...)
}

// joinAt asks one manager, which must prove that it belongs to the token's swarm.
func (m *Membership) joinAt(ctx context.Context, j *joining, token join.Token, to string) error {
	addrs, err := m.addressesFor(j.asked, to)
	if err != nil {
		return err
	}
	d := m.cfg.Describe(swarm.TLSInfo{})
	req := &wire.JoinRequest{
		Token: token.Text(), CSR: j.csr, Availability: j.availability, Addr: addrs.advertise.String(),
		Hostname: d.Hostname, Version: d.Engine.EngineVersion, Clock: time.Now(),
	}
	reply := new(wire.JoinReply)
	if err := control.Join(ctx, to, token, "/join", req, reply); err != nil {
		return err
	}
	id := identity.State{
		ClusterID: reply.ClusterID, NodeID: reply.NodeID, Epoch: reply.Epoch,
		Advertise: addrs.advertise.String(), ListenAs: j.asked.listen, AdvertiseAs: j.asked.advertise, DataPathAs: j.asked.dataPath,
		Key: j.key, Certificate: reply.Certificate, Roots: reply.Roots, Peers: reply.Managers,
	}
	if err := checkIssued(id); err != nil {
		return err
	}
	if err := m.wipe(); err != nil {
		return err
	}
	return m.become(id)
}

// checkIssued makes sure that a certificate is what was asked for.
func checkIssued(id identity.State) error {
	cert, roots, err := id.TLS()
	if err != nil {
		return err
	}
	chain, err := pki.ParseChain(id.Certificate)
	if err != nil {
		return fmt.Errorf("read issued certificate: %w", err)
	}
	n, err := pki.Verify(chain, roots, time.Now())
	switch {
	case err != nil:
		return fmt.Errorf("issued certificate: %w", err)
	case n.ID != id.NodeID || n.Cluster != id.ClusterID:
		return fmt.Errorf("issued certificate is of node %s in %s, not of %s in %s", n.ID, n.Cluster, id.NodeID, id.ClusterID)
	case cert.Leaf == nil:
		return errors.New("issued certificate cannot be read")
	}
	return nil
}

// redirected is the leader that a manager named instead of an answer.
func redirected(err error) (wire.Peer, bool) {
	nl, ok := errors.AsType[*control.NotLeader](err)
	if !ok || nl.Leader.Addr == "" {
		return wire.Peer{}, false
	}
	return nl.Leader, true
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}
