package storetest

import (
	"context"
	"errors"

	"skep/store/replica"
)

// forwarder is the way from a member to the one that leads. As in a network,
// what goes lost is the request or the answer.
type forwarder struct {
	c    *Cluster
	from *node
}

// Propose implements replica.Forwarder.
func (f forwarder) Propose(ctx context.Context, leader string, command []byte) (uint64, error) {
	return f.ask(ctx, leader, func(m *replica.Member) (uint64, error) { return m.Accept(ctx, command) })
}

// ReadIndex implements replica.Forwarder.
func (f forwarder) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	return f.ask(ctx, leader, func(m *replica.Member) (uint64, error) { return m.ReadIndex(ctx) })
}

func (f forwarder) ask(ctx context.Context, leader string, do func(*replica.Member) (uint64, error)) (uint64, error) {
	if !f.c.Net.Pass(f.from.name, leader, ctx.Done()) {
		return 0, replica.ErrNotSent
	}
	m := f.c.named(leader)
	if m == nil {
		return 0, replica.ErrNotSent
	}
	answer := replica.NewAnswer(do(m))
	if !f.c.Net.Pass(leader, f.from.name, ctx.Done()) || f.c.named(leader) != m {
		return 0, errors.New("the answer got lost")
	}
	return answer.Result()
}
