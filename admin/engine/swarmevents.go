package engine

import (
	"context"
	"iter"
	"strconv"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// Watch publishes what changes in the swarm, until ctx ends. Several changes of
// one object in quick succession may become one event.
func (j *Journal) Watch(ctx context.Context, s store.Proposer) error {
	prev := s.Snapshot()
	for {
		ch := s.Since(prev.Index)
		for _, m := range swarmEvents(prev, ch) {
			j.Publish(m)
		}
		prev = ch.Snapshot
		select {
		case <-ch.News:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// swarmEvents are the events between prev and ch.Snapshot.
func swarmEvents(prev *store.Snapshot, ch store.Changes) []events.Message {
	var ms []events.Message
	keys := ch.Keys
	if ch.All {
		keys = allKeys(prev, ch.Snapshot)
	}
	for _, k := range keys {
		kind := events.Type(k.Kind)
		switch k.Kind {
		case object.KindNode, object.KindService, object.KindSecret, object.KindConfig, object.KindNetwork:
		default:
			continue
		}
		old, now := present(prev.Get(k.Kind, k.ID)), present(ch.Snapshot.Get(k.Kind, k.ID))
		m := events.Message{Type: kind, Scope: "swarm"}
		attributes := map[string]string{}
		switch {
		case old == nil && now == nil:
			continue
		case old == nil:
			m.Action, attributes["name"] = events.ActionCreate, store.Name(now)
		case now == nil:
			m.Action, attributes["name"] = events.ActionRemove, store.Name(old)
		case old.Metadata().Version == now.Metadata().Version:
			continue
		default:
			m.Action, attributes["name"] = events.ActionUpdate, store.Name(now)
			describe(attributes, old, now)
		}
		m.Actor = events.Actor{ID: k.ID, Attributes: attributes}
		ms = append(ms, m)
	}
	return ms
}

// present is nil for what is not there or about to go.
func present(o object.Object) object.Object {
	switch o := o.(type) {
	case *object.Service:
		if o.PendingDelete {
			return nil
		}
	case *object.Network:
		if o.PendingDelete {
			return nil
		}
	}
	return o
}

// allKeys are those of both snapshots' tables that events are about.
func allKeys(prev, now *store.Snapshot) []store.Key {
	seen := map[store.Key]bool{}
	var keys []store.Key
	for _, s := range []*store.Snapshot{prev, now} {
		collect(&keys, seen, s.Nodes.All())
		collect(&keys, seen, s.Services.All())
		collect(&keys, seen, s.Secrets.All())
		collect(&keys, seen, s.Configs.All())
		collect(&keys, seen, s.Networks.All())
	}
	return keys
}

func collect[T object.Object](keys *[]store.Key, seen map[store.Key]bool, all iter.Seq[T]) {
	for o := range all {
		if k := store.KeyOf(o); !seen[k] {
			seen[k] = true
			*keys = append(*keys, k)
		}
	}
}

// describe adds what an event says of a change, by pairs key.old and key.new.
func describe(attributes map[string]string, old, now object.Object) {
	pair := func(key, old, now string) {
		if old == now {
			return
		}
		if old != "" {
			attributes[key+".old"] = old
		}
		if now != "" {
			attributes[key+".new"] = now
		}
	}
	switch now := now.(type) {
	case *object.Service:
		old := old.(*object.Service)
		pair("image", imageOf(old), imageOf(now))
		pair("replicas", replicasOf(old), replicasOf(now))
		pair("updatestate", updateState(old), updateState(now))
	case *object.Node:
		old := old.(*object.Node)
		pair("availability", string(old.Spec.Availability), string(now.Spec.Availability))
		pair("role", string(old.Spec.Role), string(now.Spec.Role))
		pair("state", string(old.Status.State), string(now.Status.State))
		before, after := managerStatus(old), managerStatus(now)
		pair("leader", strconv.FormatBool(before.Leader), strconv.FormatBool(after.Leader))
		pair("reachability", string(before.Reachability), string(after.Reachability))
	}
}

func imageOf(s *object.Service) string {
	if c := s.Spec.TaskTemplate.ContainerSpec; c != nil {
		return c.Image
	}
	return ""
}

func replicasOf(s *object.Service) string {
	if m := s.Spec.Mode.Replicated; m != nil && m.Replicas != nil {
		return strconv.FormatUint(*m.Replicas, 10)
	}
	return ""
}

func updateState(s *object.Service) string {
	if s.UpdateStatus == nil {
		return ""
	}
	return string(s.UpdateStatus.State)
}

func managerStatus(n *object.Node) swarm.ManagerStatus {
	if n.ManagerStatus == nil {
		return swarm.ManagerStatus{}
	}
	return *n.ManagerStatus
}
