package admin

import (
	"io"
	"net/http"
)

// Health is the route that tells whether the node is ready to serve: 200, or
// 503 with what ready says is missing.
func Health(ready func() error) Route {
	return Route{Pattern: "GET /skep/health", Role: Viewer, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(); err != nil {
			refuse(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(w, "ready\n")
	})}
}
