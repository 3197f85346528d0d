package membership

import (
	"context"
	"errors"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/store/object"
)

// AttachGuest asks the leader for a container's place on a network.
func (m *Membership) AttachGuest(ctx context.Context, req *wire.GuestRequest) (*wire.GuestReply, error) {
	return askOfGuests(ctx, m, "/guests/attach", req, func(h *half) (*wire.GuestReply, error) {
		return h.guests.Attach(ctx, h.node, req)
	})
}

// ListGuests asks the leader which guests this node has.
func (m *Membership) ListGuests(ctx context.Context) (*wire.GuestList, error) {
	return askOfGuests(ctx, m, "/guests/list", &wire.GuestQuestion{}, func(h *half) (*wire.GuestList, error) {
		return h.guests.List(h.node), nil
	})
}

// ReleaseGuests gives places back to the leader.
func (m *Membership) ReleaseGuests(ctx context.Context, req *wire.GuestRelease) error {
	_, err := askOfGuests(ctx, m, "/guests/release", req, func(h *half) (*wire.GuestReleased, error) {
		return &wire.GuestReleased{}, h.guests.Release(ctx, h.node, req)
	})
	return err
}

// askOfGuests asks the leader, in this process or not. The error is of the kind
// not found while the node is in no swarm.
func askOfGuests[Req, Resp any](ctx context.Context, m *Membership, path string, req *Req, here func(*half) (*Resp, error)) (*Resp, error) {
	s := m.stay.Load()
	switch {
	case s != nil:
	case m.isMember():
		return nil, object.Errorf(errdefs.ErrUnavailable, "the node is not back in its swarm yet")
	default:
		return nil, object.Errorf(errdefs.ErrNotFound, "This node is not part of a swarm")
	}
	if h := s.half.Load(); h != nil && h.member.Leading() {
		return here(h)
	}
	var no error
	reply, err := onLeader(ctx, s.peers, func(ctx context.Context, to wire.Peer) (*Resp, error) {
		reply, err := control.Call[Req, Resp](ctx, s.dialer, to, path, req)
		if isAnswer(err) {
			no, err = err, nil // another manager would not say yes
		}
		return reply, err
	})
	return reply, errors.Join(err, no)
}

// isAnswer reports whether an error is the leader's no.
func isAnswer(err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsInvalidArgument(err) || errdefs.IsPermissionDenied(err) || errdefs.IsResourceExhausted(err)
}
