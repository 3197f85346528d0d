package membership

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/manager"
	"skep/appliance/manager/ca"
	"skep/appliance/manager/guests"
	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki/identity"
	"skep/pki/seal"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// errNoManager ends the manager's half because the node is a worker now.
var errNoManager = errors.New("no longer a manager")

// half is the manager's part of a stay: it comes with a manager's certificate
// and goes with it.
type half struct {
	*stay
	raftID    string
	advertise string // host:port
	port      *control.Port
	member    *replica.Member
	manager   *manager.Manager
	ca        *ca.CA
	guests    *guests.Guests
	// ready closes when the swarm's own object is in this replica.
	ready chan struct{}
	over  chan struct{} // closed when the half has ended
}

func (h *half) isReady() bool {
	select {
	case <-h.ready:
		return true
	default:
		return false
	}
}

// manage is the manager's half whenever the node's certificate says that there
// is to be one.
func (s *stay) manage(ctx context.Context) error {
	for ctx.Err() == nil {
		_, news := s.identity.get()
		if !s.isManager() {
			if err := s.dropReplica(); err != nil {
				return err
			}
			if err := s.work(ctx, news); err != nil {
				return err
			}
			continue
		}
		err := s.manageOnce(ctx)
		if ctx.Err() != nil {
			break
		}
		switch {
		case errors.Is(err, errNoManager):
		case errors.Is(err, wire.ErrSuperseded):
			// A swarm that goes on without this manager must not be disturbed by
			// it, even if there are others like it.
			s.cfg.Logger.ErrorContext(ctx, "no longer a manager", "err", err)
			<-ctx.Done()
		case errors.Is(err, replica.ErrRemoved), s.isLost(err):
			// The swarm goes on without this replica. If the node is to be a
			// manager all the same, it comes back as another one.
			s.cfg.Logger.WarnContext(ctx, "this replica is no longer part of the swarm", "err", err)
			if err = s.dropReplica(); err != nil {
				return err
			}
			s.askRenewal()
		default:
			return err
		}
	}
	return nil //nolint:nilerr // ctx has ended
}

// lookPause is how often a manager that misses others asks them.
const lookPause = 5 * time.Second

// look asks the managers that are not heard of whether the swarm was recovered
// by force without this one, which ends the half.
func (h *half) look(ctx context.Context, end context.CancelCauseFunc) error {
	for {
		for n := range h.member.Snapshot().Nodes.All() {
			if n.ID == h.node || n.ManagerStatus == nil || n.ManagerStatus.Reachability == swarm.ReachabilityReachable && h.member.Leader() != "" {
				continue
			}
			if err := h.ask(ctx, n.ID); errors.Is(err, wire.ErrSuperseded) {
				h.problem.set(err)
				end(err)
				return nil
			}
		}
		if pause(ctx, lookPause) != nil {
			return nil
		}
	}
}

// ask is why another manager does not talk to this one, if that is so.
func (h *half) ask(ctx context.Context, node string) error {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	_, err := control.Call[question, replica.Answer](ctx, h.dialer, h.peer(node), "/readindex", &question{})
	return err
}

// isLost tells whether what the replica has on the disk is damaged, and other
// managers have it. What another key sealed only looks damaged.
func (s *stay) isLost(err error) bool {
	return errors.Is(err, replica.ErrDamaged) && !errors.Is(err, seal.ErrNoKey) && slices.ContainsFunc(s.peers.list(), func(p wire.Peer) bool { return p.NodeID != s.node })
}

// work is being a worker, until there is news of the certificate.
func (s *stay) work(ctx context.Context, news <-chan struct{}) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	var g errgroup.Group
	if s.cfg.Rekey != nil {
		g.Go(func() error { return s.cfg.Rekey(ctx, nil, s.askRenewal, s.sealed()...) })
	}
	select {
	case <-news:
	case <-ctx.Done():
	}
	end()
	return g.Wait()
}

// sealed is what a node has sealed because it is in a swarm.
func (s *stay) sealed() []Sealed { return []Sealed{{"tasks", s.agent.Reseal}} }

// dropReplica removes what the node has as a replica, if it has anything.
func (s *stay) dropReplica() error {
	if s.cfg.Keys.State().RaftID == "" {
		return nil
	}
	// First the name: nothing of what lies there is used without it.
	err := s.cfg.Keys.Update(func(st *identity.State) error {
		st.RaftID = ""
		return nil
	})
	if err != nil {
		return err
	}
	return os.RemoveAll(s.dir("raft"))
}

// manageOnce is the manager's half until the node ceases to be a manager or
// ctx ends.
func (s *stay) manageOnce(ctx context.Context) error {
	l, err := s.listen(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	// The port outlives the replica, which hands its leadership over at the end.
	pctx, closePort := context.WithCancel(context.WithoutCancel(ctx))
	defer closePort()
	h, err := s.newHalf(pctx)
	if err != nil {
		return err
	}
	hctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var ports errgroup.Group
	ports.Go(func() error {
		ended := h.port.Serve(pctx, l)
		if pctx.Err() == nil {
			end(fmt.Errorf("control port: %w", ended))
		}
		return nil
	})
	s.half.Store(h)
	s.agent.Refresh() // the manager is to know that the replica is there
	err = h.run(hctx, end)
	s.half.Store(nil)
	close(h.over)
	closePort()
	_ = ports.Wait()
	s.agent.Refresh()
	if cause := context.Cause(hctx); ctx.Err() == nil && cause != nil {
		return cause
	}
	return err
}

// listen opens the control port where the node file, or who founded or joined,
// wants it.
func (s *stay) listen(ctx context.Context) (net.Listener, error) {
	st := s.cfg.Keys.State()
	a, err := s.present(ctx, st)
	if err != nil {
		return nil, err
	}
	id := st.RaftID
	if id == "" {
		id = object.NewID()
		if err = os.MkdirAll(s.replicaDir(id), 0o700); err != nil {
			return nil, fmt.Errorf("make replica: %w", err)
		}
	}
	if st.Advertise != a.advertise.String() || st.RaftID != id {
		err = s.cfg.Keys.Update(func(st *identity.State) error {
			st.Advertise, st.RaftID = a.advertise.String(), id
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", a.listen.String())
	if err != nil {
		return nil, fmt.Errorf("control port: %w", err)
	}
	return l, nil
}

// checkReplica makes sure that what the replica had on the disk is there: one
// that forgot what it voted and stored must not go on under its name.
//
// Invariant: the directory of a replica is older than its name in the keystore,
// but for the first one of a swarm that is being founded.
func (s *stay) checkReplica(st identity.State) error {
	if len(st.Founding) > 0 {
		return nil
	}
	if _, err := os.Stat(s.replicaDir(st.RaftID)); errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("open replica: %w: the swarm's state is gone from %s", replica.ErrDamaged, s.replicaDir(st.RaftID))
	}
	return nil
}

// newHalf puts the manager's part together. Dialing other replicas ends with ctx.
func (s *stay) newHalf(ctx context.Context) (h *half, err error) {
	st := s.cfg.Keys.State()
	h = &half{stay: s, raftID: st.RaftID, advertise: st.Advertise, ready: make(chan struct{}), over: make(chan struct{})}
	// The routes look at the replica when they are asked for, which is later.
	h.port, err = control.New(control.Config{Identity: s.current, Judge: h.judge, Routes: h.routes(), Dialer: s.dialer, Logger: s.cfg.Logger})
	if err != nil {
		return nil, err
	}
	if err = s.checkReplica(st); err != nil {
		return nil, err
	}
	rc := s.replica(st.RaftID, st)
	rc.Transport = replica.NewTransport(h.port.Layer(ctx), s.cfg.Logger)
	rc.Forward = forwarder{s}
	rc.Bootstrap = len(st.Founding) > 0
	if h.member, err = replica.Open(rc); err != nil {
		return nil, fmt.Errorf("open replica: %w", err)
	}
	h.manager = manager.New(manager.Config{Store: h.member, Replica: h.member, NodeID: st.NodeID, Holdings: s.cfg.Held, Logger: s.cfg.Logger})
	h.guests = guests.New(h.member, s.cfg.Logger.With("part", "guests"))
	h.ca = ca.New(ca.Config{Store: h.member, NodeID: s.node, Certificate: s.certificate, Logger: s.cfg.Logger.With("part", "ca")})
	return h, nil
}

// run is the replica and what goes with it. end ends it for a reason.
func (h *half) run(ctx context.Context, end context.CancelCauseFunc) error {
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.replicate(gctx) })
	g.Go(func() error { return h.follow(gctx) })
	g.Go(func() error { return h.awaitReady(gctx) })
	g.Go(func() error { return h.look(gctx, end) })
	g.Go(func() error {
		for gctx.Err() == nil {
			_, news := h.identity.get()
			if !h.isManager() {
				end(errNoManager)
			}
			h.port.Review()
			select {
			case <-news:
			case <-gctx.Done():
			}
		}
		return nil
	})
	if h.cfg.Rekey != nil {
		g.Go(func() error {
			return h.cfg.Rekey(gctx, h.member, h.askRenewal, append(h.sealed(), Sealed{"replica", h.member.Reseal})...)
		})
	}
	for _, beside := range h.cfg.Beside {
		g.Go(func() error { return beside(gctx, h.member) })
	}
	return g.Wait()
}

// replicate is the replica. It ends with the process, with the node's part in
// the group, or with its disk.
func (h *half) replicate(ctx context.Context) error {
	err := h.member.Run(ctx, h.lead)
	if errors.Is(err, replica.ErrStalled) || errors.Is(err, replica.ErrDisk) {
		h.cfg.Fatal(err)
	}
	return err
}

// awaitLeader is the node that leads, after a while at most, or "".
func (h *half) awaitLeader(ctx context.Context) string {
	t := time.NewTimer(asking)
	defer t.Stop()
	for {
		changed := h.member.LeaderChanged()
		if leader := h.member.Leader(); leader != "" {
			return leader
		}
		select {
		case <-changed:
		case <-t.C:
			return ""
		case <-ctx.Done():
			return ""
		}
	}
}

// awaitReady is ready once the replica has the swarm, from a leader, and welcome
// once the swarm knows that the node is up.
func (h *half) awaitReady(ctx context.Context) error {
	select {
	case <-h.member.Ready():
	case <-ctx.Done():
		return nil
	}
	for {
		ch := h.member.Since(h.member.Snapshot().Index)
		if ch.Snapshot.Cluster() != nil && !h.isReady() {
			close(h.ready)
		}
		if n, ok := ch.Snapshot.Nodes.Get(h.node); ok && n.Status.State == swarm.NodeStateReady {
			h.welcomeHere()
			return nil
		}
		select {
		case <-ch.News:
		case <-ctx.Done():
			return nil
		}
	}
}

// follow keeps up with what the store says of the nodes: who may talk to this
// one, and where the managers are.
func (h *half) follow(ctx context.Context) error {
	for after := uint64(0); ; {
		ch := h.member.Since(after)
		after = ch.Snapshot.Index
		if ch.All || touches(ch.Keys, object.KindNode) {
			h.port.Review()
			if all := managersOf(ch.Snapshot); len(all) > 0 && h.peers.set(all) {
				if err := h.keep(wire.Swarm{Managers: all}); err != nil {
					return err
				}
			}
		}
		select {
		case <-ch.News:
		case <-ctx.Done():
			return nil
		}
	}
}

func touches(keys []store.Key, kind object.Kind) bool {
	for _, k := range keys {
		if k.Kind == kind {
			return true
		}
	}
	return false
}

// lead is being the leader: it first writes what a new swarm begins with, and
// then runs the manager's loops.
func (h *half) lead(ctx context.Context) error {
	if err := h.establish(ctx); err != nil {
		return fmt.Errorf("establish swarm: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error { return h.manager.Run(gctx) })
	g.Go(func() error { return h.ca.Run(gctx) })
	return g.Wait()
}

// establish writes the founding, if it is not in the store yet. The keystore
// forgets it only after that.
func (h *half) establish(ctx context.Context) error {
	id := h.cfg.Keys.State()
	if err := h.recovered(ctx, id); err != nil {
		return err
	}
	if len(id.Founding) == 0 {
		return nil
	}
	snap := h.member.Snapshot()
	if snap.Cluster() == nil {
		var f founding
		if err := object.Decode(id.Founding, &f); err != nil {
			return err
		}
		tx := store.Begin(snap)
		tx.Create(f.Cluster)
		tx.Create(f.Node)
		if f.Ingress != nil { // as in what an earlier version left half done
			tx.Create(f.Ingress)
		}
		if _, err := h.member.Propose(ctx, tx); err != nil {
			return err
		}
	}
	return h.cfg.Keys.Update(func(st *identity.State) error {
		st.Founding = nil
		return nil
	})
}
