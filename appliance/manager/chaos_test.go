package manager_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
)

// TestSwarm_LivesThroughAnything lets random things happen to a swarm and then
// lets it rest. No slot ever runs in two places. At the end every service runs
// as it is to, and nothing is left of anything else.
func TestSwarm_LivesThroughAnything(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{world: newWorld(t, t.TempDir()), rng: rand.New(rand.NewPCG(seed, 3)), off: map[string]bool{}}
				defer c.end()
				c.log = slog.New(slog.DiscardHandler)
				for i := range 4 {
					c.addNode(fmt.Sprintf("n%d", i))
				}
				for step := range 60 {
					what := c.disturb()
					time.Sleep(time.Duration(c.rng.IntN(8000)) * time.Millisecond)
					synctest.Wait()
					if text := c.twice(); text != "" {
						t.Fatalf("step %d, after %s: %s", step, what, text)
					}
				}
				c.rest()
				if text := c.unsettled(); text != "" {
					t.Error(text)
				}
			})
		})
	}
}

type chaos struct {
	*world
	rng     *rand.Rand
	off     map[string]bool // machines that are switched off
	stopped bool            // nobody leads
	made    int
}

func (c *chaos) addNode(name string) {
	m := &machine{name: name, world: c.world, containers: map[string]*box{}}
	m.description.Hostname = name
	n := &object.Node{}
	n.ID, n.Spec.Availability = name, swarm.NodeAvailabilityActive
	c.store.Write(c.t, func(tx *store.Tx) { tx.Create(n) })
	c.machines[name] = m
	c.boot(m)
}

func (c *chaos) pick() *machine { return c.machines[fmt.Sprintf("n%d", c.rng.IntN(4))] }

// service is one of the services, or nil if there is none.
func (c *chaos) service() *object.Service {
	n := c.store.Snapshot().Services.Len()
	if n == 0 {
		return nil
	}
	n = c.rng.IntN(n)
	for s := range c.store.Snapshot().Services.All() {
		if n == 0 {
			return s
		}
		n--
	}
	return nil
}

func (c *chaos) disturb() string {
	m, s := c.pick(), c.service()
	switch op := c.rng.IntN(11); {
	case op == 0 || s == nil:
		c.made++
		return "create " + c.create(fmt.Sprintf("s%d", c.made))
	case op == 1 && c.made > 2:
		c.store.Write(c.t, func(tx *store.Tx) { tx.Delete(s) })
		return "delete " + s.Spec.Name
	case op == 2 && s.Spec.Mode.Replicated != nil:
		c.change(s, func(spec *swarm.ServiceSpec) { spec.Mode.Replicated.Replicas = new(uint64(c.rng.IntN(7))) })
		return "scale " + s.Spec.Name
	case op == 3:
		c.change(s, func(spec *swarm.ServiceSpec) { spec.TaskTemplate.ForceUpdate++ })
		return "update " + s.Spec.Name
	case op == 4:
		c.setAvailability(m, []swarm.NodeAvailability{"active", "pause", "drain"}[c.rng.IntN(3)])
		return "availability of " + m.name
	case op == 5:
		c.power(m, c.off[m.name])
		return "power of " + m.name
	case op == 6 && !c.off[m.name]:
		m.process.stop()
		c.boot(m)
		return "restart " + m.name
	case op == 7:
		c.lead(c.stopped)
		return "leadership"
	default:
		return "kill on " + m.name + c.kill(m)
	}
}

func (c *chaos) create(name string) string {
	spec := swarm.ServiceSpec{Mode: swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(1 + c.rng.IntN(5)))}}}
	if c.rng.IntN(4) == 0 {
		spec.Mode = swarm.ServiceMode{Global: &swarm.GlobalService{}}
	}
	spec.Name = name
	spec.TaskTemplate.ContainerSpec = &swarm.ContainerSpec{Image: "img"}
	spec.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: new(time.Duration(c.rng.IntN(3)) * time.Second)}
	spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: uint64(c.rng.IntN(3)), FailureAction: swarm.UpdateFailureActionContinue}
	c.store.Write(c.t, func(tx *store.Tx) { store.CreateService(tx, spec, nil) })
	return name
}

func (c *chaos) change(s *object.Service, do func(*swarm.ServiceSpec)) {
	spec := s.Clone().(*object.Service).Spec
	do(&spec)
	c.store.Write(c.t, func(tx *store.Tx) { store.UpdateService(tx, s, spec, nil) })
}

func (c *chaos) setAvailability(m *machine, a swarm.NodeAvailability) {
	synctest.Wait() // else a report of the node may come between
	n, _ := c.store.Snapshot().Nodes.Get(m.name)
	n = n.Clone().(*object.Node)
	n.Spec.Availability = a
	c.store.Write(c.t, func(tx *store.Tx) { tx.Update(n) })
}

func (c *chaos) power(m *machine, on bool) {
	if on == !c.off[m.name] {
		return
	}
	c.off[m.name] = !on
	if on {
		c.boot(m)
		return
	}
	m.process.stop()
	m.process = nil
	c.kill(m)
}

func (c *chaos) lead(on bool) {
	if on == !c.stopped {
		return
	}
	c.stopped = !on
	if on {
		c.leader = c.spawn("manager", c.manager.Run)
		return
	}
	c.leader.stop()
	c.leader = nil
}

// kill ends what runs on a machine.
func (c *chaos) kill(m *machine) (what string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, b := range m.containers {
		if b.running {
			what += " " + b.name
			b.stop(137)
		}
	}
	return what
}

// twice says which slot runs more than once.
func (c *chaos) twice() string {
	seen := map[string]string{}
	for _, m := range c.machines {
		m.mu.Lock()
		for id, b := range m.containers {
			if !b.running {
				continue
			}
			where := b.name
			if b.task.Task.Slot == 0 {
				where += "@" + m.name
			}
			if other, ok := seen[where]; ok {
				m.mu.Unlock()
				return fmt.Sprintf("%s runs as %s on %s and as %s", where, id, m.name, other)
			}
			seen[where] = id + " on " + m.name
		}
		m.mu.Unlock()
	}
	return ""
}

// rest makes all well and gives the swarm time.
func (c *chaos) rest() {
	c.lead(true)
	for _, name := range []string{"n0", "n1", "n2", "n3"} {
		c.power(c.machines[name], true)
		c.setAvailability(c.machines[name], swarm.NodeAvailabilityActive)
	}
	time.Sleep(5 * time.Minute)
	synctest.Wait()
}

// unsettled says what is not as it should be.
func (c *chaos) unsettled() string {
	snap := c.store.Snapshot()
	want := 0
	for s := range snap.Services.All() {
		n := 4
		if s.Spec.Mode.Replicated != nil {
			n = int(*s.Spec.Mode.Replicated.Replicas)
		}
		want += n
		for t := range snap.Tasks.By(store.ByService, s.ID) {
			switch {
			case object.Ended(t.DesiredState) != object.Ended(t.Status.State):
				return fmt.Sprintf("%s.%d is %s, to be %s", s.Spec.Name, t.Slot, t.Status.State, t.DesiredState)
			case t.DesiredState == swarm.TaskStateRunning && t.Status.State == swarm.TaskStateRunning:
				n--
			}
		}
		if n != 0 {
			return fmt.Sprintf("%s lacks %d tasks", s.Spec.Name, n)
		}
		if u := s.UpdateStatus; u != nil && u.State != swarm.UpdateStateCompleted {
			return fmt.Sprintf("the update of %s is %s", s.Spec.Name, u.State)
		}
	}
	running, boxes := 0, 0
	for _, m := range c.machines {
		m.mu.Lock()
		boxes += len(m.containers)
		for id, b := range m.containers {
			if b.running {
				running++
			}
			if _, ok := snap.Tasks.Get(id); !ok {
				m.mu.Unlock()
				return fmt.Sprintf("container %s is of no task", b.name)
			}
		}
		m.mu.Unlock()
	}
	if running != want {
		return fmt.Sprintf("%d of %d containers run, %d should", running, boxes, want)
	}
	for t := range snap.Tasks.All() {
		if _, ok := snap.Services.Get(t.ServiceID); !ok {
			return fmt.Sprintf("task %s of no service: %s, to be %s on %s", t.ID, t.Status.State, t.DesiredState, t.NodeID)
		}
	}
	for r := range snap.Revisions.All() {
		if _, ok := snap.Services.Get(r.ServiceID); !ok {
			return "revision of no service"
		}
	}
	return ""
}
