package engine

import (
	"context"
	"net/http"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) serviceRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /services", a.listServices),
		a.read("GET /services/{id}", a.inspectService),
		a.read("GET /services/{id}/logs", a.serviceLogs),
		a.write(admin.Operator, "POST /services/create", a.createService),
		a.write(admin.Operator, "POST /services/{id}/update", a.updateService),
		a.write(admin.Operator, "DELETE /services/{id}", a.removeService),
	}
}

// showService is a service as the API shows it.
func showService(s *object.Service) swarm.Service {
	shown := s.Service
	shown.Spec.Labels = labels(shown.Spec.Labels)
	if shown.PreviousSpec != nil {
		shown.PreviousSpec = new(*shown.PreviousSpec)
		shown.PreviousSpec.Labels = labels(shown.PreviousSpec.Labels)
	}
	return shown
}

// findService is the service that ref means; one that is being removed is gone.
func findService(s *store.Snapshot, ref string) (*object.Service, error) {
	o, err := s.Services.Find(ref)
	if err == nil && o.PendingDelete {
		return nil, object.Errorf(errdefs.ErrNotFound, "service %s not found", ref)
	}
	return o, err
}

func (a *API) listServices(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "id", "label", "mode", "name", "runtime")
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	show := showService
	if flag(r, "status") && minorOf(r) >= 41 {
		show = func(o *object.Service) swarm.Service {
			shown := showService(o)
			shown.ServiceStatus = serviceStatus(s, o)
			return shown
		}
	}
	return writeJSON(w, http.StatusOK, shown(s.Services.All(), func(o *object.Service) bool {
		runtime := o.Spec.TaskTemplate.Runtime
		if runtime == "" {
			runtime = swarm.RuntimeContainer
		}
		return !o.PendingDelete && f.Prefix("id", o.ID) && f.Prefix("name", o.Spec.Name) &&
			f.Labels("label", o.Spec.Labels) && f.Exact("mode", modeOf(o.Spec.Mode)) &&
			f.Exact("runtime", string(runtime))
	}, show))
}

// modeOf is a service's mode as filters call it.
func modeOf(m swarm.ServiceMode) string {
	switch {
	case m.Global != nil:
		return "global"
	case m.ReplicatedJob != nil:
		return "replicated-job"
	case m.GlobalJob != nil:
		return "global-job"
	}
	return "replicated"
}

// serviceStatus counts a service's tasks. Running ones count whatever is
// desired of them, so that an update that starts first shows 4/3; but not those
// that are replaced because their node is down, of which nothing is known.
func serviceStatus(s *store.Snapshot, o *object.Service) *swarm.ServiceStatus {
	var status swarm.ServiceStatus
	for t := range s.Tasks.By(store.ByService, o.ID) {
		if t.Status.State == swarm.TaskStateRunning && (t.DesiredState == swarm.TaskStateRunning || !isDown(s, t.NodeID)) {
			status.RunningTasks++
		}
		if o.Spec.Mode.Global != nil && t.DesiredState == swarm.TaskStateRunning {
			status.DesiredTasks++
		}
	}
	if m := o.Spec.Mode.Replicated; m != nil && m.Replicas != nil {
		status.DesiredTasks = *m.Replicas
	}
	return &status
}

func isDown(s *store.Snapshot, node string) bool {
	n, ok := s.Nodes.Get(node)
	return !ok || n.Status.State == swarm.NodeStateDown
}

func (a *API) inspectService(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	o, err := findService(s, r.PathValue("id"))
	if err != nil {
		return err
	}
	shown := inspectedService{Service: showService(o), Skep: publishedAs(o)}
	if flag(r, "insertDefaults") {
		shown.Spec = object.WithDefaults(shown.Spec)
	}
	return writeJSON(w, http.StatusOK, shown)
}

// serviceRequest is a spec with what clients below 1.44 put beside the task's.
type serviceRequest struct {
	swarm.ServiceSpec
	Networks []swarm.NetworkAttachmentConfig `json:",omitempty"`
}

func decodeService(r *http.Request) (swarm.ServiceSpec, *registry.AuthConfig, error) {
	req, err := decode[serviceRequest](r)
	if err != nil {
		return swarm.ServiceSpec{}, nil, err
	}
	auth, err := registryAuth(r)
	if err != nil {
		return swarm.ServiceSpec{}, nil, err
	}
	spec := req.ServiceSpec
	if minorOf(r) < 44 && len(spec.TaskTemplate.Networks) == 0 {
		spec.TaskTemplate.Networks = req.Networks
	}
	gateSpec(&spec, minorOf(r))
	fillSpec(&spec)
	return spec, auth, nil
}

// fillSpec puts in the few defaults that are stored; the others are only shown.
func fillSpec(spec *swarm.ServiceSpec) {
	spec.Labels = labels(spec.Labels)
	if c := spec.TaskTemplate.ContainerSpec; c != nil && c.Isolation == "" {
		c.Isolation = "default"
	}
	if spec.TaskTemplate.Runtime == "" {
		spec.TaskTemplate.Runtime = swarm.RuntimeContainer
	}
	m := &spec.Mode
	if m.Replicated == nil && m.Global == nil && m.ReplicatedJob == nil && m.GlobalJob == nil {
		m.Replicated = &swarm.ReplicatedService{}
	}
	if m.Replicated != nil && m.Replicated.Replicas == nil {
		m.Replicated.Replicas = new(uint64(1))
	}
}

// freeName is a name for a service that was given none.
func freeName(s *store.Snapshot) string {
	for try := 0; ; try++ {
		name := object.RandomName(try)
		taken := false
		for range s.Services.By(store.ByName, name) {
			taken = true
		}
		if !taken {
			return name
		}
	}
}

func (a *API) createService(w http.ResponseWriter, r *http.Request) error {
	spec, auth, err := decodeService(r)
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	if spec.Name == "" {
		spec.Name = freeName(s)
	}
	if err = a.checkService(r.Context(), s, "", &spec); err != nil {
		return err
	}
	if err = allowHost(r.Context(), hostService(spec)); err != nil {
		return err
	}
	warnings := a.pin(r.Context(), &spec, auth)
	var o *object.Service
	err = a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		if conflict := refer(s, tx, "", spec); conflict != nil {
			return conflict
		}
		o = store.CreateService(tx, spec, auth)
		return nil
	})
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), o.ID)
	return writeJSON(w, http.StatusCreated, swarm.ServiceCreateResponse{ID: o.ID, Warnings: warnings})
}

func (a *API) updateService(w http.ResponseWriter, r *http.Request) error {
	spec, auth, err := decodeService(r)
	if err != nil {
		return err
	}
	version, err := objectVersion(r, "service")
	if err != nil {
		return err
	}
	rollback := param(r, "rollback")
	if rollback != "" && rollback != "previous" && rollback != "none" {
		return invalid("unrecognized rollback option %s", rollback)
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	if _, err = findService(s, r.PathValue("id")); err != nil {
		return err
	}
	var warnings []string
	if rollback == "previous" {
		err = a.rollBack(r.Context(), r.PathValue("id"), version)
	} else {
		warnings, err = a.replaceSpec(r, s, version, spec, auth)
	}
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, swarm.ServiceUpdateResponse{Warnings: warnings})
}

// rollBack swaps a service's spec and the one before it.
func (a *API) rollBack(ctx context.Context, ref string, version swarm.Version) error {
	return a.change(ctx, func(s *store.Snapshot, tx *store.Tx) error {
		old, err := findService(s, ref)
		switch {
		case err != nil:
			return err
		case old.PreviousSpec == nil:
			return object.Errorf(errdefs.ErrFailedPrecondition, "service %s does not have a previous spec", old.ID)
		case version != old.Version:
			return store.ErrSequence
		}
		if err := allowHost(ctx, hostService(*old.PreviousSpec)); err != nil {
			return err
		}
		if err := refer(s, tx, old.ID, *old.PreviousSpec); err != nil {
			return err
		}
		store.RollbackService(tx, old, false, "manually requested rollback", time.Now())
		return nil
	})
}

// replaceSpec gives a service a new spec.
func (a *API) replaceSpec(r *http.Request, s *store.Snapshot, version swarm.Version, spec swarm.ServiceSpec, auth *registry.AuthConfig) (warnings []string, err error) {
	ref := r.PathValue("id")
	old, err := findService(s, ref)
	if err != nil {
		return nil, err
	}
	if err := a.checkService(r.Context(), s, old.ID, &spec); err != nil {
		return nil, err
	}
	if err := checkChange(old, spec); err != nil {
		return nil, err
	}
	// Others may scale what an admin set up, but not choose what runs there.
	if !sameWork(old.Spec.TaskTemplate, nil, swarm.ServiceSpec{TaskTemplate: spec.TaskTemplate}) {
		if err := allowHost(r.Context(), hostService(spec)); err != nil {
			return nil, err
		}
	}
	if version != old.Version {
		return nil, store.ErrSequence
	}
	if auth == nil {
		if auth = old.Auth; param(r, "registryAuthFrom") == string(swarm.RegistryAuthFromPreviousSpec) {
			auth = old.PreviousAuth
		}
	}
	if wantsPin(old.Spec, spec) {
		warnings = a.pin(r.Context(), &spec, auth)
	}
	return warnings, a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		old, err := findService(s, ref)
		if err != nil {
			return err
		}
		if version != old.Version {
			return store.ErrSequence
		}
		if err := refer(s, tx, old.ID, spec); err != nil {
			return err
		}
		store.UpdateService(tx, old, spec, auth)
		return nil
	})
}

// checkChange refuses what cannot be changed of a service.
func checkChange(old *object.Service, spec swarm.ServiceSpec) error {
	switch {
	case spec.Name != old.Spec.Name:
		return object.Errorf(errdefs.ErrNotImplemented, "renaming services is not supported")
	case modeOf(spec.Mode) != modeOf(old.Spec.Mode):
		return object.Errorf(errdefs.ErrNotImplemented, "service mode change is not allowed")
	}
	return nil
}

func (a *API) removeService(_ http.ResponseWriter, r *http.Request) error {
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		o, err := findService(s, r.PathValue("id"))
		if err != nil {
			return err
		}
		tx.Delete(o)
		return nil
	})
}
