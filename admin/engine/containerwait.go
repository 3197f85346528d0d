package engine

import (
	"encoding/json"
	"net/http"

	"github.com/moby/moby/api/types/container"
)

// containerWait sends the header as soon as the wait is registered: "docker
// run" starts the container only when it has it, or would miss its end.
func (a *API) containerWait(w http.ResponseWriter, r *http.Request) error {
	until := container.WaitConditionNotRunning
	switch c := container.WaitCondition(param(r, "condition")); c {
	case "":
	case container.WaitConditionNotRunning, container.WaitConditionNextExit, container.WaitConditionRemoved:
		until = c
	default:
		return invalid("invalid condition: %q", string(c))
	}
	wait, err := a.Containers.Wait(r.Context(), r.PathValue("id"), until)
	if err != nil {
		return err
	}
	if _, err = flushed(w, "application/json"); err != nil {
		return err
	}
	status, err := wait(r.Context())
	if err != nil {
		status.Error = &container.WaitExitError{Message: err.Error()}
	}
	return json.NewEncoder(w).Encode(status)
}
