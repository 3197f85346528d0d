package membership

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"

	"skep/appliance/wire"
	"skep/appliance/wire/control"
	"skep/pki"
	"skep/store/replica"
)

// The messages of managers among themselves; replica.Answer is the reply to both.
type (
	// proposal is a change that a follower was asked for.
	proposal struct{ Command []byte }
	// question asks for an index at which everything acknowledged so far is known.
	question struct{}
)

// routes are what the control port serves. What only the leader can answer is
// answered with where it is.
func (h *half) routes() []control.Route {
	anonymous, nodes, managers := []control.Class{control.Anonymous}, []control.Class{control.Worker, control.Manager}, []control.Class{control.Manager}
	return append([]control.Route{
		{For: anonymous, Pattern: "POST /join", Handler: leaderOnly(h, func(ctx context.Context, _ pki.Node, req *wire.JoinRequest) (*wire.JoinReply, error) {
			return h.ca.Join(ctx, control.Source(ctx), req)
		})},
		{For: anonymous, Pattern: "POST /reenrol", Handler: leaderOnly(h, func(ctx context.Context, _ pki.Node, req *wire.ReenrolRequest) (*wire.JoinReply, error) {
			return h.ca.Reenrol(ctx, control.Source(ctx), req)
		})},
		{For: nodes, Pattern: "POST /renew", Handler: leaderOnly(h, func(ctx context.Context, from pki.Node, req *wire.RenewRequest) (*wire.RenewReply, error) {
			return h.ca.Renew(ctx, from, req)
		})},
		{For: nodes, Pattern: "POST /guests/attach", Handler: leaderOnly(h, func(ctx context.Context, from pki.Node, req *wire.GuestRequest) (*wire.GuestReply, error) {
			return h.guests.Attach(ctx, from.ID, req)
		})},
		{For: nodes, Pattern: "POST /guests/list", Handler: leaderOnly(h, func(_ context.Context, from pki.Node, _ *wire.GuestQuestion) (*wire.GuestList, error) {
			return h.guests.List(from.ID), nil
		})},
		{For: nodes, Pattern: "POST /guests/release", Handler: leaderOnly(h, func(ctx context.Context, from pki.Node, req *wire.GuestRelease) (*wire.GuestReleased, error) {
			return &wire.GuestReleased{}, h.guests.Release(ctx, from.ID, req)
		})},
		{For: nodes, Pattern: "POST /session", Handler: leaderStream(h, func(ctx context.Context, from pki.Node, _ *http.Request, conn net.Conn) error {
			return h.manager.Serve(ctx, conn, from)
		})},
		{For: nodes, Pattern: "POST /streams/{id}", Handler: leaderStream(h, func(ctx context.Context, from pki.Node, r *http.Request, conn net.Conn) error {
			return h.manager.Attach(ctx, from.ID, r.PathValue("id"), conn)
		})},
		{For: managers, Pattern: "POST /propose", Handler: control.Handle(func(ctx context.Context, _ pki.Node, p *proposal) (*replica.Answer, error) {
			return new(replica.NewAnswer(h.member.Accept(ctx, p.Command))), nil
		})},
		{For: managers, Pattern: "POST /readindex", Handler: control.Handle(func(ctx context.Context, _ pki.Node, _ *question) (*replica.Answer, error) {
			return new(replica.NewAnswer(h.member.ReadIndex(ctx))), nil
		})},
		{For: managers, Pattern: "POST /nodes/{id}/connect", Handler: leaderStream(h, func(ctx context.Context, _ pki.Node, r *http.Request, conn net.Conn) error {
			return h.manager.Reach(ctx, r.PathValue("id"), conn)
		})},
	}, h.cfg.Routes...)
}

// leads is nil while this manager leads, and else says who does.
func (h *half) leads() error {
	if h.member.Leading() {
		return nil
	}
	leader := h.member.Leader()
	return &control.NotLeader{Leader: wire.Peer{NodeID: leader, Addr: h.resolve(leader)}}
}

// leaderOnly is a route that the leader answers.
func leaderOnly[Req, Resp any](h *half, f func(context.Context, pki.Node, *Req) (*Resp, error)) http.Handler {
	return control.Handle(func(ctx context.Context, from pki.Node, req *Req) (*Resp, error) {
		if err := h.leads(); err != nil {
			return nil, err
		}
		return f(ctx, from, req)
	})
}

// leaderStream is a stream to the leader.
func leaderStream(h *half, f func(context.Context, pki.Node, *http.Request, net.Conn) error) http.Handler {
	return control.Stream(func(ctx context.Context, from pki.Node, r *http.Request, conn net.Conn) error {
		if err := h.leads(); err != nil {
			return err
		}
		return f(ctx, from, r, conn)
	})
}

// judge is what a certificate that verifies is worth now.
func (h *half) judge(n pki.Node, raft bool) control.Class { return judge(h.member.Snapshot(), n, raft) }

// certificate is the node's own, for what must prove itself to others.
func (s *stay) certificate() (tls.Certificate, error) { return s.current().Certificate, nil }

// forwarder takes a follower's questions to the leader.
type forwarder struct{ *stay }

// Propose implements replica.Forwarder.
func (f forwarder) Propose(ctx context.Context, leader string, command []byte) (uint64, error) {
	return forward(ctx, f, leader, "/propose", &proposal{command})
}

// ReadIndex implements replica.Forwarder.
func (f forwarder) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	return forward(ctx, f, leader, "/readindex", &question{})
}

func forward[Req any](ctx context.Context, f forwarder, leader, path string, req *Req) (uint64, error) {
	a, err := control.Call[Req, replica.Answer](ctx, f.dialer, f.peer(leader), path, req)
	switch {
	case err == nil:
		return a.Result()
	case errors.Is(err, control.ErrUnanswered):
		return 0, err
	}
	return 0, errors.Join(replica.ErrNotSent, err)
}

func (s *stay) peer(node string) wire.Peer { return wire.Peer{NodeID: node, Addr: s.resolve(node)} }
