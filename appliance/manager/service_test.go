package manager_test

import (
	"strconv"
	"strings"
	"testing/synctest"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"
	"github.com/rogpeppe/go-internal/testscript"

	"skep/store"
	"skep/store/object"
)

// cmdService creates a service: service NAME [KEY=VALUE...], see amend.
func (w *world) cmdService(ts *testscript.TestScript, args []string) {
	spec := swarm.ServiceSpec{}
	spec.Name = args[0]
	spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(uint64(1))}
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img"}
	for _, a := range args[1:] {
		w.amend(ts, &spec, a)
	}
	w.store.Write(w.t, func(tx *store.Tx) { store.CreateService(tx, spec, nil) })
	synctest.Wait()
}

// cmdUpdate changes a service: update NAME [KEY=VALUE...], see amend.
func (w *world) cmdUpdate(ts *testscript.TestScript, args []string) {
	old := w.service(ts, args[0])
	spec := old.Clone().(*object.Service).Spec
	for _, a := range args[1:] {
		w.amend(ts, &spec, a)
	}
	w.store.Write(w.t, func(tx *store.Tx) { store.UpdateService(tx, old, spec, nil) })
	synctest.Wait()
}

// cmdRemove deletes a service, or marks it as to be deleted: delete NAME [mark].
func (w *world) cmdRemove(ts *testscript.TestScript, args []string) {
	s := w.service(ts, args[0]).Clone().(*object.Service)
	w.store.Write(w.t, func(tx *store.Tx) {
		if len(args) == 1 {
			tx.Delete(s)
			return
		}
		s.PendingDelete = true
		tx.Update(s)
	})
	synctest.Wait()
}

func (w *world) cmdSecret(ts *testscript.TestScript, args []string) {
	s := &object.Secret{}
	s.ID, s.Spec.Name, s.Spec.Data = args[0], args[0], []byte(args[1])
	w.store.Write(w.t, func(tx *store.Tx) { tx.Create(s) })
}

// amend sets one thing in a spec.
func (w *world) amend(ts *testscript.TestScript, spec *swarm.ServiceSpec, arg string) {
	k, v, _ := strings.Cut(arg, "=")
	number := func() uint64 {
		n, err := strconv.ParseUint(v, 10, 64)
		ts.Check(err)
		return n
	}
	duration := func() time.Duration {
		d, err := time.ParseDuration(v)
		ts.Check(err)
		return d
	}
	t := &spec.TaskTemplate
	if t.Placement == nil {
		t.Placement = &swarm.Placement{}
	}
	if t.RestartPolicy == nil {
		t.RestartPolicy = &swarm.RestartPolicy{}
	}
	updates := func() *swarm.UpdateConfig {
		if spec.UpdateConfig == nil {
			spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1}
		}
		return spec.UpdateConfig
	}
	reservations := func() *swarm.Resources {
		if t.Resources == nil {
			t.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{}}
		}
		return t.Resources.Reservations
	}
	switch k {
	case "replicas":
		spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(number())}
	case "mode":
		spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	case "image":
		t.ContainerSpec.Image = v
	case "secret":
		t.ContainerSpec.Secrets = append(t.ContainerSpec.Secrets, &swarm.SecretReference{SecretID: v, SecretName: v})
	case "port", "hostport":
		published, target, _ := strings.Cut(v, ":")
		p := swarm.PortConfig{}
		n, err := strconv.ParseUint(published, 10, 16)
		ts.Check(err)
		p.PublishedPort = uint32(n)
		n, err = strconv.ParseUint(target, 10, 16)
		ts.Check(err)
		p.TargetPort = uint32(n)
		if k == "hostport" {
			p.PublishMode = swarm.PortConfigPublishModeHost
		}
		spec.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{p}}
	case "network":
		t.Networks = networksOf(v)
	case "constraint":
		t.Placement.Constraints = append(t.Placement.Constraints, v)
	case "spread":
		t.Placement.Preferences = append(t.Placement.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: v}})
	case "max":
		t.Placement.MaxReplicas = number()
	case "cpu":
		reservations().NanoCPUs = int64(number()) * 1e9
	case "memory":
		n, err := units.RAMInBytes(v)
		ts.Check(err)
		reservations().MemoryBytes = n
	case "restart":
		t.RestartPolicy.Condition = swarm.RestartPolicyCondition(v)
	case "delay":
		t.RestartPolicy.Delay = new(duration())
	case "attempts":
		t.RestartPolicy.MaxAttempts = new(number())
	case "window":
		t.RestartPolicy.Window = new(duration())
	case "parallelism":
		updates().Parallelism = number()
	case "update-delay":
		updates().Delay = duration()
	case "order":
		updates().Order = swarm.UpdateOrder(v)
	case "action":
		updates().FailureAction = swarm.FailureAction(v)
	case "force":
		t.ForceUpdate++
	default:
		ts.Fatalf("unknown part of a service: %q", arg)
	}
}
