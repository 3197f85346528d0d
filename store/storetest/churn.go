package storetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"skep/store/replica"
)

// leading is a member that believes to lead, or nil.
func (c *Cluster) leading() *replica.Member {
	for i := range c.nodes {
		if m := c.Member(i); m != nil && m.Leading() {
			return m
		}
	}
	return nil
}

// ask has the leader do something, and says what came of it.
func (c *Cluster) ask(do func(ctx context.Context, m *replica.Member) error) string {
	m := c.leading()
	if m == nil {
		return ": nobody leads"
	}
	ctx, cancel := context.WithTimeout(c.tb.Context(), 5*time.Second)
	defer cancel()
	if err := do(ctx, m); err != nil {
		return ": " + err.Error()
	}
	return ""
}

func (c *Cluster) id(i int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodes[i].id
}

// Replace takes a member out of the group, and makes its host one that was
// never in it.
func (c *Cluster) Replace(i int) string {
	return c.ask(func(ctx context.Context, m *replica.Member) error {
		if len(m.Members()) < len(c.nodes) {
			return fmt.Errorf("%d members are few enough", len(m.Members()))
		}
		if m == c.Member(i) {
			return errors.New("it leads")
		}
		if err := m.Remove(ctx, c.id(i)); err != nil {
			return err
		}
		c.Crash(i)
		c.mu.Lock()
		n := c.nodes[i]
		n.stints++
		n.id = fmt.Sprintf("%s-%d", n.name, n.stints)
		fresh := NewDisk(uint64(i))
		fresh.unsynced, fresh.mangle = n.disk.unsynced, n.disk.mangle
		n.disk = fresh
		c.mu.Unlock()
		c.Start(i)
		return nil
	})
}

func (c *Cluster) demote(i int) string {
	return c.ask(func(ctx context.Context, m *replica.Member) error { return m.DemoteVoter(ctx, c.id(i)) })
}

func (c *Cluster) transfer() string {
	return c.ask(func(ctx context.Context, m *replica.Member) error { return m.Transfer(ctx, "") })
}

// admit lets one more of those in, or vote, who do not yet.
func (c *Cluster) admit() {
	said := c.ask(func(ctx context.Context, m *replica.Member) error {
		in := map[string]bool{}
		for _, s := range m.Members() {
			in[s.ID] = s.Voter
		}
		for i := range c.nodes {
			switch votes, there := in[c.id(i)]; {
			case !there:
				return m.AddNonvoter(ctx, c.id(i), c.Name(i))
			case !votes:
				return m.AddVoter(ctx, c.id(i), c.Name(i))
			}
		}
		return nil
	})
	if said != "" {
		c.Trace.Log("admit%s", said)
	}
}
