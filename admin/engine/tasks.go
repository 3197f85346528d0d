package engine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"strconv"

	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/admin/filters"
	"skep/store"
	"skep/store/object"
)

func (a *API) taskRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /tasks", a.listTasks),
		a.read("GET /tasks/{id}", a.inspectTask),
		a.read("GET /tasks/{id}/logs", a.taskLogs),
	}
}

// showTask is a task as the API shows it, with the spec that it runs.
func showTask(s *store.Snapshot, t *object.Task) swarm.Task {
	shown := swarm.Task{
		ID:           t.ID,
		Meta:         t.Meta,
		Annotations:  swarm.Annotations{Labels: map[string]string{}},
		ServiceID:    t.ServiceID,
		Slot:         t.Slot,
		NodeID:       t.NodeID,
		Status:       t.Status,
		DesiredState: t.DesiredState,
		JobIteration: t.JobIteration,

		NetworksAttachments: showAttachments(s, t),
	}
	if rev := s.Revision(t.ServiceID, t.SpecVersion); rev != nil {
		shown.Spec = rev.Spec
	}
	return shown
}

// taskName is what a task's container is called.
func taskName(s *store.Snapshot, t *object.Task) string {
	service := t.ServiceID
	if o, ok := s.Services.Get(t.ServiceID); ok {
		service = o.Spec.Name
	} else if rev := s.Revision(t.ServiceID, t.SpecVersion); rev != nil {
		service = rev.Service.Name
	}
	slot := t.NodeID
	if t.Slot != 0 {
		slot = strconv.Itoa(t.Slot)
	}
	return service + "." + slot + "." + t.ID
}

func (a *API) listTasks(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service")
	if err != nil {
		return err
	}
	for _, v := range f.Values("desired-state") {
		if object.Rank(swarm.TaskState(v)) < 0 {
			return invalid("Invalid desired-state filter: '%s'", v)
		}
	}
	current, err := f.Bool("_up-to-date", false)
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	if err := resolveTaskFilters(s, f); err != nil {
		return err
	}
	same := map[string]bool{} // what upToDate found, by revision
	return writeJSON(w, http.StatusOK, shown(candidates(s, f), func(t *object.Task) bool {
		return f.Exact("node", t.NodeID) && f.Prefix("id", t.ID) &&
			f.Exact("desired-state", string(t.DesiredState)) && f.Exact("runtime", string(swarm.RuntimeContainer)) &&
			(!f.Has("name") || f.Prefix("name", taskName(s, t))) && taskLabels(s, f, t) &&
			(!current || upToDate(s, t, same))
	}, func(t *object.Task) swarm.Task { return showTask(s, t) }))
}

// candidates are the tasks of the services or nodes that are asked for, or all.
func candidates(s *store.Snapshot, f filters.Filters) iter.Seq[*object.Task] {
	index, key := store.ByService, "service"
	if !f.Has(key) {
		index, key = store.ByNode, "node"
	}
	if !f.Has(key) {
		return s.Tasks.All()
	}
	return func(yield func(*object.Task) bool) {
		for _, id := range f.Values(key) {
			for t := range s.Tasks.By(index, id) {
				if !yield(t) {
					return
				}
			}
		}
	}
}

// resolveTaskFilters replaces the services and nodes that are filtered by with
// their IDs.
func resolveTaskFilters(s *store.Snapshot, f filters.Filters) error {
	services, nodes := map[string]bool{}, map[string]bool{}
	for _, ref := range f.Values("service") {
		o, err := findService(s, ref)
		if err != nil {
			return err
		}
		services[o.ID] = true
	}
	for _, ref := range f.Values("node") {
		n, err := s.Nodes.Find(ref)
		if err != nil {
			return err
		}
		nodes[n.ID] = true
	}
	if len(services) > 0 {
		f["service"] = services
	}
	if len(nodes) > 0 {
		f["node"] = nodes
	}
	return nil
}

// taskLabels matches the labels of the task's service.
func taskLabels(s *store.Snapshot, f filters.Filters, t *object.Task) bool {
	if !f.Has("label") {
		return true
	}
	if rev := s.Revision(t.ServiceID, t.SpecVersion); rev != nil && f.Labels("label", rev.Service.Labels) {
		return true
	}
	o, ok := s.Services.Get(t.ServiceID)
	return ok && f.Labels("label", o.Spec.Labels)
}

// upToDate says whether a task runs what its service asks for now. A change
// that replaces no task leaves them up to date. known keeps the answers: many
// tasks are of few revisions.
func upToDate(s *store.Snapshot, t *object.Task, known map[string]bool) bool {
	o, ok := s.Services.Get(t.ServiceID)
	if !ok {
		return false
	}
	if t.SpecVersion == o.SpecVersion {
		return true
	}
	key := object.RevisionKey(t.ServiceID, t.SpecVersion)
	same, ok := known[key]
	if !ok {
		rev := s.Revision(t.ServiceID, t.SpecVersion)
		same = rev != nil && sameWork(rev.Spec, rev.Endpoint, o.Spec)
		known[key] = same
	}
	return same
}

// sameWork compares what a task runs with a service's spec. Placement is left
// to the enforcer: it evicts what may no longer be where it is.
func sameWork(task swarm.TaskSpec, endpoint *swarm.EndpointSpec, spec swarm.ServiceSpec) bool {
	// As JSON there is no difference between what is empty and what is not there.
	normal := func(task swarm.TaskSpec, endpoint *swarm.EndpointSpec) []byte {
		full := object.WithDefaults(swarm.ServiceSpec{TaskTemplate: task, EndpointSpec: endpoint})
		full.TaskTemplate.Placement = nil
		text, err := json.Marshal(full)
		if err != nil {
			panic(fmt.Sprintf("encode spec: %v", err)) // it came as JSON
		}
		return text
	}
	return bytes.Equal(normal(task, endpoint), normal(spec.TaskTemplate, spec.EndpointSpec))
}

func (a *API) inspectTask(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	t, err := s.Tasks.Find(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showTask(s, t))
}
