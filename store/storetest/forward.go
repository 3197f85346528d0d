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
	return f.ask(leader, func(m *replica.Member) (uint64, error) { return m.Accept(ctx, command) })
}

// ReadIndex implements replica.Forwarder.
func (f forwarder) ReadIndex(ctx context.Context, leader string) (uint64, error) {
	return f.ask(leader, func(m *replica.Member) (uint64, error) { return m.ReadIndex(ctx) })
}

func (f forwarder) ask(leader string, do func(*replica.Member) (uint64, error)) (uint64, error) {
	m := f.reach(leader)
	if m == nil {
		return 0, replica.ErrNotSent
	}
	answer := replica.NewAnswer(do(m))
	if f.reach(leader) != m {
		return 0, errors.New("the answer got lost")
	}
	return answer.Result()
}

// reach is the member of a node, if it is up and not cut off.
func (f forwarder) reach(id string) *replica.Member {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	for _, n := range f.c.nodes {
		if n.id == id && !f.from.cut[n] {
			return n.member
		}
	}
	return nil
}
