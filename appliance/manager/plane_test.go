package manager_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"skep/appliance/wire"
)

// plane is a machine's data plane: it leads connections to the endpoints that
// are active in the view which it has programmed last. It outlives the agent.
// All of it is guarded by the machine's mu.
type plane struct {
	view  *wire.NetworkView // programmed
	next  *wire.NetworkView // nil if view is the last
	delay time.Duration     // until a view is programmed
	stuck bool              // nothing is programmed any more
}

// told takes a view from the agent.
func (m *machine) toldNetworks(v *wire.NetworkView) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plane.next == nil {
		time.AfterFunc(m.plane.delay, m.program)
	}
	m.plane.next = v
}

func (m *machine) program() {
	m.mu.Lock()
	v := m.plane.next
	m.plane.next = nil
	if m.plane.stuck || !m.off.IsZero() {
		m.mu.Unlock()
		return
	}
	before := m.plane.view
	m.plane.view = v
	m.mu.Unlock()
	m.world.gap(m.name, before, v)
	m.agent.Programmed(wire.Programmed{Networks: v.Version})
}

// gap notes that a service which was led to is so no more, though it is there.
func (w *world) gap(node string, before, now *wire.NetworkView) {
	for network, services := range actives(before) {
		for id, n := range services {
			if m := now.Networks[network]; n > 0 && m != nil && m.Services[id].ID != "" && actives(now)[network][id] == 0 {
				w.note("%s leads nowhere on %s", m.Services[id].Name, node)
			}
		}
	}
}

// actives counts the active endpoints of each network and service.
func actives(v *wire.NetworkView) map[string]map[string]int {
	out := map[string]map[string]int{}
	if v == nil {
		return out
	}
	for id, m := range v.Networks {
		out[id] = map[string]int{}
		for _, e := range m.Endpoints {
			if e.State == wire.EndpointActive {
				out[id][e.Service]++
			}
		}
	}
	return out
}

// leads tells whether connections are led to a task.
func (m *machine) leads(task string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plane.view == nil || !m.off.IsZero() {
		return false
	}
	for _, n := range m.plane.view.Networks {
		if n.Endpoints[task].State == wire.EndpointActive {
			return true
		}
	}
	return false
}

// stops notes that a task on networks is stopped, and who leads there still.
func (w *world) stops(name, task string) {
	var who []string
	for _, id := range slices.Sorted(maps.Keys(w.machines)) {
		if w.machines[id].leads(task) {
			who = append(who, id)
		}
	}
	if len(who) == 0 {
		who = []string{"nobody"}
	}
	w.note("%s stopped, led to by %s", name, strings.Join(who, " "))
}

func (w *world) note(format string, args ...any) {
	w.rules.mu.Lock()
	defer w.rules.mu.Unlock()
	w.rules.notes = append(w.rules.notes, fmt.Sprintf(format, args...))
}

// cmdProgram says how long a node takes to program what it is told, or that it
// does so no more: program NODE DURATION|never.
func (w *world) cmdProgram(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.plane.stuck = args[1] == "never"; m.plane.stuck {
		return
	}
	var err error
	m.plane.delay, err = time.ParseDuration(args[1])
	ts.Check(err)
}

// cmdPlane prints the endpoints that a node has programmed.
func (w *world) cmdPlane(ts *testscript.TestScript, args []string) {
	m := w.machine(ts, args)
	m.mu.Lock()
	defer m.mu.Unlock()
	var lines []string
	if m.plane.view != nil {
		for id, n := range m.plane.view.Networks {
			for _, e := range n.Endpoints {
				name := strings.TrimSuffix(e.Names[0], "."+e.ID)
				lines = append(lines, fmt.Sprintf("%s %s on %s %s", id, name, e.Node, e.State))
			}
		}
	}
	slices.Sort(lines)
	if len(lines) == 0 {
		lines = []string{"nothing"}
	}
	fmt.Fprintln(ts.Stdout(), strings.Join(lines, "\n"))
}

// cmdNotes prints what was noted since it was last called: tasks that stopped,
// and services that led nowhere.
func (w *world) cmdNotes(ts *testscript.TestScript, _ []string) {
	w.rules.mu.Lock()
	defer w.rules.mu.Unlock()
	if len(w.rules.notes) == 0 {
		fmt.Fprintln(ts.Stdout(), "nothing")
	}
	slices.Sort(w.rules.notes)
	for _, n := range w.rules.notes {
		fmt.Fprintln(ts.Stdout(), n)
	}
	w.rules.notes = nil
}
