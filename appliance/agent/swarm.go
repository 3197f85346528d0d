package agent

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
)

// maxStreams is how many streams the node serves at once: a manager that
// invites it to more is not answered.
const maxStreams = 256

func (a *Agent) member() *wire.Member {
	if a.cfg.Member == nil {
		return nil
	}
	return a.cfg.Member()
}

// telling is what the manager is told of the node.
func (a *Agent) telling(ctx context.Context, desc swarm.NodeDescription) wire.Describe {
	d := wire.Describe{Description: desc, Member: a.member()}
	if a.cfg.DataPath != nil {
		d.DataPath = a.cfg.DataPath(ctx)
	}
	if a.cfg.Boot != nil {
		d.Boot = a.cfg.Boot()
	}
	return d
}

// Leave tells the manager that the node leaves the swarm, and returns when the
// manager knows: it waits for a session as long as ctx lasts.
func (a *Agent) Leave(ctx context.Context) {
	known := make(chan struct{})
	select {
	case a.bye <- known:
	case <-ctx.Done():
		return
	}
	select {
	case <-known:
	case <-ctx.Done():
	}
}

// changed is the node as it is now, nil if that is what was told.
func (a *Agent) changed(ctx context.Context, told *wire.Describe) *wire.Describe {
	desc, err := a.describe(ctx)
	if err != nil {
		a.cfg.Logger.WarnContext(ctx, "node not described", "err", err)
		return nil
	}
	now := a.telling(ctx, desc)
	if reflect.DeepEqual(now, *told) {
		return nil
	}
	*told = now
	return &now
}

// passOn hands on what the manager says of the swarm. It may take its time: the
// session goes on meanwhile.
func (s *session) passOn(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case sw := <-s.swarm:
			if s.agent.cfg.Swarm == nil {
				continue
			}
			switch err := s.agent.cfg.Swarm(ctx, *sw); {
			case err == nil:
				s.agent.keys.Store(sw.GossipVersion)
			case ctx.Err() == nil:
				s.agent.cfg.Logger.WarnContext(ctx, "news of the swarm not taken in", "err", err)
			}
		case nodes := <-s.nodes:
			if s.agent.cfg.Nodes != nil {
				s.agent.cfg.Nodes(nodes)
			}
		}
	}
}

// moved takes in where the nodes are.
func (s *session) moved(n *wire.Nodes) {
	if n.Complete {
		clear(s.place)
	}
	for _, p := range n.Items {
		s.place[p.NodeID] = p.Addr
	}
	for _, id := range n.Gone {
		delete(s.place, id)
	}
	if n.More {
		return
	}
	all := make([]wire.Peer, 0, len(s.place))
	for _, id := range slices.Sorted(maps.Keys(s.place)) {
		all = append(all, wire.Peer{NodeID: id, Addr: s.place[id]})
	}
	select { // replace an older one
	case <-s.nodes:
	default:
	}
	s.nodes <- all
}

// hold tells the manager which images the node has.
func (s *session) hold(ctx context.Context) error {
	if s.agent.cfg.Holdings == nil {
		return nil
	}
	err := s.agent.cfg.Holdings(ctx, func(h *wire.Holdings) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s.held <- h:
			return nil
		}
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("tell images: %w", err) // the next session tells them all again
	}
	return nil
}

// invited serves a stream beside the session, and beyond its end.
func (a *Agent) invited(ctx context.Context, stream string, streams *errgroup.Group) {
	if a.cfg.Invited == nil {
		return
	}
	select {
	case a.streams <- struct{}{}:
	default:
		a.cfg.Logger.WarnContext(ctx, "invitation to a stream declined: too many are open", "streams", maxStreams)
		return
	}
	streams.Go(func() error {
		defer func() { <-a.streams }()
		a.cfg.Invited(ctx, stream)
		return nil
	})
}
