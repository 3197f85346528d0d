package store

import (
	"cmp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// Snapshot is the state at one moment. It never changes.
type Snapshot struct {
	// Index is the version of the last change, and of the objects it changed.
	Index     uint64
	Clusters  *Table[*object.Cluster]
	Nodes     *Table[*object.Node]
	Services  *Table[*object.Service]
	Revisions *Table[*object.Revision]
	Tasks     *Table[*object.Task]
	Secrets   *Table[*object.Secret]
	Configs   *Table[*object.Config]
	Networks  *Table[*object.Network]
	Guests    *Table[*object.Guest]
}

// Cluster is the one object about the swarm itself, or nil before there is one.
func (s *Snapshot) Cluster() *object.Cluster {
	c, _ := s.Clusters.rows.Min()
	return c
}

// Get is the object of any kind with this key, or nil.
func (s *Snapshot) Get(k object.Kind, id string) object.Object {
	switch k {
	case object.KindCluster:
		return get(s.Clusters, id)
	case object.KindNode:
		return get(s.Nodes, id)
	case object.KindService:
		return get(s.Services, id)
	case object.KindRevision:
		return get(s.Revisions, id)
	case object.KindTask:
		return get(s.Tasks, id)
	case object.KindSecret:
		return get(s.Secrets, id)
	case object.KindConfig:
		return get(s.Configs, id)
	case object.KindNetwork:
		return get(s.Networks, id)
	case object.KindGuest:
		return get(s.Guests, id)
	}
	return nil
}

// get avoids a nil pointer in a non-nil interface.
func get[T object.Object](t *Table[T], id string) object.Object {
	if o, ok := t.Get(id); ok {
		return o
	}
	return nil
}

func empty() *Snapshot {
	s := &Snapshot{
		Clusters: newTable(
			by("", func(c *object.Cluster) *string { return &c.ID })),
		Nodes: newTable(
			by("", func(n *object.Node) *string { return &n.ID }),
			byName(func(n *object.Node) *string { return &n.Description.Hostname })),
		Services: newTable(
			by("", func(s *object.Service) *string { return &s.ID }),
			byName(func(s *object.Service) *string { return &s.Spec.Name })),
		Revisions: newTable(
			order[*object.Revision]{"", compareRevisions, func(r *object.Revision, key string) { r.ServiceID, r.SpecVersion = cutRevisionKey(key) }},
			by(ByService, func(r *object.Revision) *string { return &r.ServiceID })),
		Tasks: newTable(
			by("", func(t *object.Task) *string { return &t.ID }),
			by(ByService, func(t *object.Task) *string { return &t.ServiceID }),
			by(ByNode, func(t *object.Task) *string { return &t.NodeID }),
			order[*object.Task]{ByRevision, compareTaskRevisions, func(t *object.Task, key string) { t.ServiceID, t.SpecVersion = cutRevisionKey(key) }}),
		Secrets: newTable(
			by("", func(s *object.Secret) *string { return &s.ID }),
			byName(func(s *object.Secret) *string { return &s.Spec.Name })),
		Configs: newTable(
			by("", func(c *object.Config) *string { return &c.ID }),
			byName(func(c *object.Config) *string { return &c.Spec.Name })),
		Networks: newTable(
			by("", func(n *object.Network) *string { return &n.ID }),
			byName(func(n *object.Network) *string { return &n.Spec.Name })),
		Guests: newTable(
			by("", func(g *object.Guest) *string { return &g.ID }),
			by(ByNode, func(g *object.Guest) *string { return &g.NodeID })),
	}
	return s
}

func compareRevisions(a, b *object.Revision) int {
	return cmp.Or(strings.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.SpecVersion.Index, b.SpecVersion.Index))
}

func compareTaskRevisions(a, b *object.Task) int {
	return cmp.Or(strings.Compare(a.ServiceID, b.ServiceID), cmp.Compare(a.SpecVersion.Index, b.SpecVersion.Index))
}

func cutRevisionKey(key string) (serviceID string, v swarm.Version) {
	serviceID, n, _ := strings.Cut(key, "/")
	v.Index, _ = strconv.ParseUint(n, 10, 64) // what is no key finds nothing: no version is 0
	return serviceID, v
}

// Revision is what a task runs, or nil if it is gone.
func (s *Snapshot) Revision(serviceID string, v swarm.Version) *object.Revision {
	p := object.Revision{ServiceID: serviceID, SpecVersion: v}
	r, _ := s.Revisions.rows.Get(&p)
	return r
}
