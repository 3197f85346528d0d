package engine

import (
	"net/http"
	"slices"

	"skep/admin"
)

func (a *API) containerRoutes() []admin.Route {
	return slices.Concat([]admin.Route{
		a.read("GET /containers/json", a.containerList),
		a.read("GET /containers/{id}/logs", a.logsAnywhere),
		a.write(admin.Operator, "POST /containers/create", a.containerCreate),
		a.write(admin.Operator, "POST /containers/prune", a.containerPrune),
		a.write(admin.Operator, "POST /containers/{id}/start", verb(a.containerStart)),
		a.write(admin.Operator, "POST /containers/{id}/stop", verb(a.containerStop)),
		a.write(admin.Operator, "POST /containers/{id}/restart", verb(a.containerRestart)),
		a.write(admin.Operator, "POST /containers/{id}/kill", verb(a.containerKill)),
		a.write(admin.Operator, "POST /containers/{id}/pause", verb(a.containerPause)),
		a.write(admin.Operator, "POST /containers/{id}/unpause", verb(a.containerUnpause)),
		a.write(admin.Operator, "POST /containers/{id}/rename", verb(a.containerRename)),
		a.write(admin.Operator, "DELETE /containers/{id}", verb(a.containerRemove)),
	}, a.reachableRoutes(a.anywhere), a.unbuiltContainerRoutes())
}

// wait is a route that changes nothing in spite of its method.
func (a *API) wait(pattern string, h handler) admin.Route {
	return admin.Route{Pattern: pattern, Role: admin.Operator, Handler: a.serve(h)}
}

func (a *API) unbuiltContainerRoutes() []admin.Route {
	const files = "copying files to and from containers is"
	return []admin.Route{
		a.read("GET /containers/{id}/archive", refuse(files)),
		a.read("HEAD /containers/{id}/archive", refuse(files)),
		stream(a.write(admin.Operator, "PUT /containers/{id}/archive", refuse(files))),
		a.read("GET /containers/{id}/changes", refuse("listing a container's changed files is")),
		a.read("GET /containers/{id}/export", refuse("exporting containers is")),
		a.write(admin.Operator, "POST /containers/{id}/update", refuse("updating a container's limits is")),
		a.read("GET /containers/{id}/attach/ws", refuse("attaching by websocket is")),
		a.read("GET /containers/{id}/checkpoints", refuse("checkpoints are")),
		a.write(admin.Operator, "POST /containers/{id}/checkpoints", refuse("checkpoints are")),
		a.write(admin.Operator, "POST /commit", refuse("making images of containers is")),
		stream(a.write(admin.Operator, "POST /build", refuse("building images is"))),
		stream(a.write(admin.Operator, "POST /session", refuse("building images is"))),
		stream(a.write(admin.Operator, "POST /grpc", refuse("building images is"))),
	}
}

// refuse answers a route whose capability is not built.
func refuse(what string) handler {
	return func(http.ResponseWriter, *http.Request) error { return unbuilt(what) }
}
