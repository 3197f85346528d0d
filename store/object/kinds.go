package object

import (
	"slices"
	"strconv"

	"github.com/moby/moby/api/types/swarm"
)

// Kind implements [Object].
func (*Cluster) Kind() Kind { return KindCluster }

// Kind implements [Object].
func (*Node) Kind() Kind { return KindNode }

// Kind implements [Object].
func (*Service) Kind() Kind { return KindService }

// Kind implements [Object].
func (*Revision) Kind() Kind { return KindRevision }

// Kind implements [Object].
func (*Task) Kind() Kind { return KindTask }

// Kind implements [Object].
func (*Secret) Kind() Kind { return KindSecret }

// Kind implements [Object].
func (*Config) Kind() Kind { return KindConfig }

// Kind implements [Object].
func (*Network) Kind() Kind { return KindNetwork }

// Kind implements [Object].
func (*Guest) Kind() Kind { return KindGuest }

// Key implements [Object].
func (c *Cluster) Key() string { return c.ID }

// Key implements [Object].
func (n *Node) Key() string { return n.ID }

// Key implements [Object].
func (s *Service) Key() string { return s.ID }

// Key implements [Object].
func (r *Revision) Key() string { return RevisionKey(r.ServiceID, r.SpecVersion) }

// Key implements [Object].
func (t *Task) Key() string { return t.ID }

// Key implements [Object].
func (s *Secret) Key() string { return s.ID }

// Key implements [Object].
func (c *Config) Key() string { return c.ID }

// Key implements [Object].
func (n *Network) Key() string { return n.ID }

// Key implements [Object].
func (g *Guest) Key() string { return g.ID }

// Metadata implements [Object].
func (c *Cluster) Metadata() *swarm.Meta { return &c.Meta }

// Metadata implements [Object].
func (n *Node) Metadata() *swarm.Meta { return &n.Meta }

// Metadata implements [Object].
func (s *Service) Metadata() *swarm.Meta { return &s.Meta }

// Metadata implements [Object].
func (r *Revision) Metadata() *swarm.Meta { return &r.Meta }

// Metadata implements [Object].
func (t *Task) Metadata() *swarm.Meta { return &t.Meta }

// Metadata implements [Object].
func (s *Secret) Metadata() *swarm.Meta { return &s.Meta }

// Metadata implements [Object].
func (c *Config) Metadata() *swarm.Meta { return &c.Meta }

// Metadata implements [Object].
func (n *Network) Metadata() *swarm.Meta { return &n.Meta }

// Metadata implements [Object].
func (g *Guest) Metadata() *swarm.Meta { return &g.Meta }

// Clone implements [Object].
func (c *Cluster) Clone() Object { return deepCopy(c) }

// Clone implements [Object].
func (n *Node) Clone() Object { return deepCopy(n) }

// Clone implements [Object].
func (s *Service) Clone() Object { return deepCopy(s) }

// Clone implements [Object].
func (r *Revision) Clone() Object { return deepCopy(r) }

// Clone implements [Object]. By hand: tasks are many and change often.
func (t *Task) Clone() Object {
	c := *t
	c.Ports = slices.Clone(t.Ports)
	c.Networks = cloneTaskNetworks(t.Networks)
	c.Status.PortStatus.Ports = slices.Clone(t.Status.PortStatus.Ports)
	if cs := t.Status.ContainerStatus; cs != nil {
		c.Status.ContainerStatus = new(*cs)
	}
	if t.JobIteration != nil {
		c.JobIteration = new(*t.JobIteration)
	}
	return &c
}

// Clone implements [Object].
func (s *Secret) Clone() Object { return deepCopy(s) }

// Clone implements [Object].
func (c *Config) Clone() Object { return deepCopy(c) }

// Clone implements [Object].
func (n *Network) Clone() Object { return deepCopy(n) }

// Clone implements [Object].
func (g *Guest) Clone() Object { return deepCopy(g) }

// RevisionKey is the key of a service's revision.
func RevisionKey(serviceID string, v swarm.Version) string {
	return serviceID + "/" + strconv.FormatUint(v.Index, 10)
}

// New is an empty object of a kind, or nil if there is no such kind.
func New(k Kind) Object {
	switch k {
	case KindCluster:
		return new(Cluster)
	case KindNode:
		return new(Node)
	case KindService:
		return new(Service)
	case KindRevision:
		return new(Revision)
	case KindTask:
		return new(Task)
	case KindSecret:
		return new(Secret)
	case KindConfig:
		return new(Config)
	case KindNetwork:
		return new(Network)
	case KindGuest:
		return new(Guest)
	}
	return nil
}
