package engine

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/common"

	"skep/store"
	"skep/store/object"
)

// statuses is the one table from kinds of errors to status codes; the first
// row that fits decides.
func statuses() []struct {
	kind   error
	status int
} {
	return []struct {
		kind   error
		status int
	}{
		{errdefs.ErrNotModified, http.StatusNotModified},
		{errdefs.ErrNotFound, http.StatusNotFound},
		{errdefs.ErrInvalidArgument, http.StatusBadRequest},
		{errdefs.ErrFailedPrecondition, http.StatusBadRequest},
		{errdefs.ErrOutOfRange, http.StatusBadRequest},
		{errdefs.ErrConflict, http.StatusConflict},
		{errdefs.ErrAlreadyExists, http.StatusConflict},
		{errdefs.ErrUnauthenticated, http.StatusUnauthorized},
		{errdefs.ErrPermissionDenied, http.StatusForbidden},
		{errdefs.ErrNotImplemented, http.StatusNotImplemented},
		{errdefs.ErrUnavailable, http.StatusServiceUnavailable},
		{errdefs.ErrResourceExhausted, http.StatusServiceUnavailable},
		// Clients below 1.52 look for its text, not for its status.
		{store.ErrSequence, http.StatusInternalServerError},
	}
}

// statusOf is the status for an error, and whether its kind is in the table.
func statusOf(err error) (status int, known bool) {
	for _, row := range statuses() {
		if errors.Is(err, row.kind) {
			return row.status, true
		}
	}
	return http.StatusInternalServerError, false
}

// fail answers with err, or ends the connection when the reply has begun.
func (a *API) fail(w *tracked, r *http.Request, err error) {
	gone := r.Context().Err() != nil
	status, known := statusOf(err)
	if !known && !gone {
		a.Logger.ErrorContext(r.Context(), "failed request", "pattern", r.Pattern, "err", err)
	}
	if w.begun {
		if !gone && !errors.Is(err, context.Canceled) {
			a.Logger.DebugContext(r.Context(), "broke off reply", "pattern", r.Pattern, "err", err)
			// The client must not take what it got for the whole.
			panic(http.ErrAbortHandler)
		}
		return
	}
	if status == http.StatusNotModified {
		w.WriteHeader(status)
		return
	}
	_ = writeJSON(w, status, common.ErrorResponse{Message: err.Error()})
}

// NotFound answers requests that no route takes, also those with a method
// that their path does not have.
func NotFound(w http.ResponseWriter, _ *http.Request) {
	_ = writeJSON(w, http.StatusNotFound, common.ErrorResponse{Message: "page not found"})
}

// invalid is an error of the client's making.
func invalid(format string, args ...any) error {
	return object.Errorf(errdefs.ErrInvalidArgument, format, args...)
}

// unbuilt is the refusal of what a later version does.
func unbuilt(what string) error {
	return object.Errorf(errdefs.ErrNotImplemented, "%s not supported yet", what)
}

// writeJSON is the reply v. Its error is one of the connection: nobody is left to tell.
func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	return err
}
