package engine

import (
	"net/http"

	"skep/admin"
)

func (a *API) distributionRoutes() []admin.Route {
	return []admin.Route{a.read("GET /distribution/{name...}", a.distribution)}
}

// distribution answers with an image's digest and platforms, by which clients
// pin what they deploy.
func (a *API) distribution(w http.ResponseWriter, r *http.Request) error {
	name, verb := nameAndVerb(r, "name")
	if verb != "json" || name == "" {
		NotFound(w, r)
		return nil
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	found, err := a.Images.Distribution(r.Context(), name, auth)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, found)
}
