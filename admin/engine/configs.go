package engine

import (
	"net/http"

	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) configRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /configs", a.listConfigs),
		a.read("GET /configs/{id}", a.inspectConfig),
		a.write(admin.Operator, "POST /configs/create", a.createConfig),
		a.write(admin.Operator, "POST /configs/{id}/update", a.updateConfig),
		a.write(admin.Operator, "DELETE /configs/{id}", a.removeConfig),
	}
}

// showConfig is a config as the API shows it, data and all.
func showConfig(c *object.Config) swarm.Config {
	shown := c.Config
	shown.Spec.Labels = labels(shown.Spec.Labels)
	return shown
}

func (a *API) listConfigs(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "id", "label", "name", "names")
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shown(s.Configs.All(), func(o *object.Config) bool {
		return f.Prefix("id", o.ID) && f.Prefix("name", o.Spec.Name) && f.Exact("names", o.Spec.Name) &&
			f.Labels("label", o.Spec.Labels)
	}, showConfig))
}

func (a *API) inspectConfig(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	o, err := s.Configs.Find(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showConfig(o))
}

func (a *API) createConfig(w http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.ConfigSpec](r)
	if err != nil {
		return err
	}
	if err = checkTemplating(r, spec.Templating); err != nil {
		return err
	}
	if err = object.ValidateConfig(spec); err != nil {
		return err
	}
	spec.Labels = labels(spec.Labels)
	o := &object.Config{Config: swarm.Config{ID: object.NewID(), Spec: spec}}
	err = a.change(r.Context(), func(_ *store.Snapshot, tx *store.Tx) error {
		tx.Create(o)
		return nil
	})
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), o.ID)
	return writeJSON(w, http.StatusCreated, swarm.ConfigCreateResponse{ID: o.ID})
}

func (a *API) updateConfig(_ http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.ConfigSpec](r)
	if err != nil {
		return err
	}
	version, err := objectVersion(r, "config")
	if err != nil {
		return err
	}
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		old, err := s.Configs.Find(r.PathValue("id"))
		if err != nil {
			return err
		}
		if version != old.Version {
			return store.ErrSequence
		}
		if err := onlyLabels(old.Spec.Annotations, spec.Annotations, old.Spec.Data, spec.Data, old.Spec.Templating, spec.Templating); err != nil {
			return err
		}
		o := clone(old)
		o.Spec.Labels = labels(spec.Labels)
		tx.Update(o)
		return nil
	})
}

func (a *API) removeConfig(w http.ResponseWriter, r *http.Request) error {
	err := a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		o, err := s.Configs.Find(r.PathValue("id"))
		if err != nil {
			return err
		}
		if err := unused(s, "config", o.Spec.Name, func(c *swarm.ContainerSpec) bool {
			for _, ref := range c.Configs {
				if ref.ConfigID == o.ID {
					return true
				}
			}
			return false
		}); err != nil {
			return err
		}
		tx.Unused(o)
		tx.Delete(o)
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
