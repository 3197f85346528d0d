package simtest_test

import (
	"fmt"
	"slices"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// act is something that operators do, or that happens to a worker.
func (s *swarmed) act() {
	w := s.workers[s.rng.IntN(len(s.workers))]
	switch s.rng.IntN(14) {
	case 0, 1:
		if s.made < 8 {
			s.create()
		}
	case 2:
		s.change("scale", func(_ *store.Tx, spec *swarm.ServiceSpec) {
			spec.Mode.Replicated.Replicas = new(uint64(s.rng.IntN(12)))
		})
	case 3:
		s.change("update", func(tx *store.Tx, spec *swarm.ServiceSpec) {
			if s.rng.IntN(2) == 0 {
				s.joinNetworks(tx, spec)
			}
			spec.TaskTemplate.ForceUpdate++
			spec.TaskTemplate.ContainerSpec.Secrets = s.someSecrets()
		})
	case 4:
		if s.made > 4 {
			s.write(func(tx *store.Tx) {
				if o := s.service(tx.Base()); o != nil {
					s.trace.Log("remove %s", o.Spec.Name)
					tx.Delete(o)
				}
			})
		}
	case 5:
		s.availability(w, []swarm.NodeAvailability{"active", "pause", "drain"}[s.rng.IntN(3)])
	case 6:
		s.trace.Log("switch off %s", w.node())
		w.stop()
		w.halt()
		w.plane.clear()
	case 7:
		s.trace.Log("restart agent of %s", w.node())
		w.stop()
		w.boot()
	case 8:
		s.trace.Log("kill what runs on %s", w.node())
		w.halt()
	case 9:
		for i := range s.cluster.Size() {
			s.cluster.Net.Cut(s.cluster.Name(i), w.host, true)
		}
		s.trace.Log("cut off %s", w.node())
	case 10:
		s.network()
	case 11:
		if s.networks > 0 {
			s.removeNetwork()
		}
	default:
		s.remove(w)
	}
}

// remove takes a node out of the swarm and lets its machine join again.
func (s *swarmed) remove(w *worker) {
	s.trace.Log("remove node %s", w.node())
	s.write(func(tx *store.Tx) {
		if n, ok := tx.Base().Nodes.Get(w.node()); ok {
			tx.Delete(n)
		}
	})
	if s.rng.IntN(2) == 0 {
		w.join()
		s.trace.Log("%s joined", w.node())
	}
}

func (s *swarmed) create() {
	s.made++
	spec := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(1 + s.rng.IntN(10)))}}}
	if s.rng.IntN(6) == 0 {
		spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	}
	spec.Name = fmt.Sprint("s", s.made)
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img", Secrets: s.someSecrets()}
	spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: uint64(s.rng.IntN(4)), FailureAction: swarm.UpdateFailureActionContinue}
	if s.rng.IntN(3) == 0 {
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	}
	s.trace.Log("create %s", spec.Name)
	s.write(func(tx *store.Tx) {
		s.joinNetworks(tx, &spec)
		store.CreateService(tx, spec, nil)
	})
}

func (s *swarmed) someSecrets() (refs []*swarm.SecretReference) {
	for i := range secrets {
		if s.rng.IntN(4) == 0 {
			refs = append(refs, &swarm.SecretReference{SecretID: fmt.Sprint("secret", i), SecretName: fmt.Sprint("secret", i)})
		}
	}
	return refs
}

// service is one of the services, or nil.
func (s *swarmed) service(snap *store.Snapshot) *object.Service {
	all := slices.Collect(snap.Services.All())
	if len(all) == 0 {
		return nil
	}
	return all[s.rng.IntN(len(all))]
}

func (s *swarmed) change(what string, do func(*store.Tx, *swarm.ServiceSpec)) {
	s.write(func(tx *store.Tx) {
		o := s.service(tx.Base())
		if o == nil || o.Spec.Mode.Replicated == nil {
			return
		}
		spec := o.Clone().(*object.Service).Spec
		do(tx, &spec)
		s.trace.Log("%s %s", what, spec.Name)
		store.UpdateService(tx, o, spec, nil)
	})
}

func (s *swarmed) availability(w *worker, to swarm.NodeAvailability) {
	s.write(func(tx *store.Tx) {
		n, ok := tx.Base().Nodes.Get(w.node())
		if !ok || n.Spec.Availability == to {
			return
		}
		s.trace.Log("%s is to be %s", w.node(), to)
		n = n.Clone().(*object.Node)
		n.Spec.Availability = to
		tx.Update(n)
	})
}
