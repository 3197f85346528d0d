package engine

import "net/http"

func (a *API) containerLogs(w http.ResponseWriter, r *http.Request) error {
	q, err := parseLogRequest(r)
	if err != nil {
		return err
	}
	c, err := a.Containers.Inspect(r.Context(), r.PathValue("id"), false)
	if err != nil {
		return err
	}
	tty := c.Config != nil && c.Config.Tty
	// A node's own containers have no details to tell; only the place for them.
	return writeLog(w, r, q, tty, plain(a.Containers.Logs(r.Context(), c.ID, q.LogQuery)))
}
