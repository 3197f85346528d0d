package engine

import (
	"bytes"
	"fmt"
	"net/http"
	"reflect"
	"strings"

	"github.com/moby/moby/api/types/swarm"

	"skep/admin"
	"skep/store"
	"skep/store/object"
)

func (a *API) secretRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /secrets", a.listSecrets),
		a.read("GET /secrets/{id}", a.inspectSecret),
		a.write(admin.Operator, "POST /secrets/create", a.createSecret),
		a.write(admin.Operator, "POST /secrets/{id}/update", a.updateSecret),
		a.write(admin.Operator, "DELETE /secrets/{id}", a.removeSecret),
	}
}

// showSecret is a secret as the API shows it: never with its data.
func showSecret(s *object.Secret) swarm.Secret {
	shown := s.Secret
	shown.Spec.Data = nil
	shown.Spec.Labels = labels(shown.Spec.Labels)
	return shown
}

func (a *API) listSecrets(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "id", "label", "name", "names")
	if err != nil {
		return err
	}
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, shown(s.Secrets.All(), func(o *object.Secret) bool {
		return f.Prefix("id", o.ID) && f.Prefix("name", o.Spec.Name) && f.Exact("names", o.Spec.Name) &&
			f.Labels("label", o.Spec.Labels)
	}, showSecret))
}

func (a *API) inspectSecret(w http.ResponseWriter, r *http.Request) error {
	s, err := a.state(r.Context())
	if err != nil {
		return err
	}
	o, err := s.Secrets.Find(r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showSecret(o))
}

func (a *API) createSecret(w http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.SecretSpec](r)
	if err != nil {
		return err
	}
	if err = checkTemplating(r, spec.Templating); err != nil {
		return err
	}
	if spec.Driver != nil {
		return unbuilt("secret drivers are")
	}
	if err = object.ValidateSecret(spec); err != nil {
		return err
	}
	spec.Labels = labels(spec.Labels)
	o := &object.Secret{Secret: swarm.Secret{ID: object.NewID(), Spec: spec}}
	err = a.change(r.Context(), func(_ *store.Snapshot, tx *store.Tx) error {
		tx.Create(o)
		return nil
	})
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), o.ID)
	return writeJSON(w, http.StatusCreated, swarm.SecretCreateResponse{ID: o.ID})
}

// checkTemplating refuses templates that nobody would fill in.
func checkTemplating(r *http.Request, t *swarm.Driver) error {
	switch {
	case t == nil:
		return nil
	case minorOf(r) < 37:
		return invalid("templating is not supported on API versions below 1.37")
	case t.Name != "golang":
		return invalid("unrecognized template type")
	}
	return nil
}

// onlyLabels refuses to change anything of a secret or config but its labels.
// What the client leaves out is taken as it was.
func onlyLabels(old, now swarm.Annotations, oldData, data []byte, oldDriver, driver *swarm.Driver) error {
	changed := now.Name != "" && now.Name != old.Name || data != nil && !bytes.Equal(oldData, data) ||
		driver != nil && !reflect.DeepEqual(oldDriver, driver)
	if changed {
		return invalid("only updates to Labels are allowed")
	}
	return nil
}

func (a *API) updateSecret(_ http.ResponseWriter, r *http.Request) error {
	spec, err := decode[swarm.SecretSpec](r)
	if err != nil {
		return err
	}
	version, err := objectVersion(r, "secret")
	if err != nil {
		return err
	}
	return a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		old, err := s.Secrets.Find(r.PathValue("id"))
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

func (a *API) removeSecret(w http.ResponseWriter, r *http.Request) error {
	err := a.change(r.Context(), func(s *store.Snapshot, tx *store.Tx) error {
		o, err := s.Secrets.Find(r.PathValue("id"))
		if err != nil {
			return err
		}
		if err := unused(s, "secret", o.Spec.Name, func(c *swarm.ContainerSpec) bool {
			for _, ref := range c.Secrets {
				if ref.SecretID == o.ID {
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

// unused refuses to remove what services refer to.
func unused(s *store.Snapshot, kind, name string, refers func(*swarm.ContainerSpec) bool) error {
	var users []string
	for service := range s.Services.All() {
		if c := service.Spec.TaskTemplate.ContainerSpec; c != nil && refers(c) {
			users = append(users, service.Spec.Name)
		}
	}
	plural := ""
	switch {
	case len(users) == 0:
		return nil
	case len(users) > 1:
		plural = "s"
	}
	return invalid("%s", fmt.Sprintf("%s '%s' is in use by the following service%s: %s", kind, name, plural, strings.Join(users, ", ")))
}
