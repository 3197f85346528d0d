package control_test

import (
	"strings"
	"testing"

	"skep/appliance/wire/control"
	"skep/appliance/wire/control/controltest"
	"skep/pki"
)

func TestMatrix(t *testing.T) {
	only := func(c control.Class) []control.Class { return []control.Class{c} }
	rpc, stream := control.Handle(echo), control.Stream(echoStream)
	w := newWorld(t,
		control.Route{For: only(control.Anonymous), Pattern: "POST /join", Handler: rpc},
		control.Route{For: members(), Pattern: "POST /session", Handler: stream},
		control.Route{For: members(), Pattern: "POST /renew", Handler: rpc},
		control.Route{For: members(), Pattern: "GET /blobs/{digest}", Handler: rpc},
		control.Route{For: only(control.Worker), Pattern: "POST /streams/{id}", Handler: stream},
		control.Route{For: only(control.Manager), Pattern: "POST /propose", Handler: rpc},
		control.Route{For: only(control.Manager), Pattern: "POST /nodes/{id}/connect", Handler: stream},
	)
	w.book.set("w1", pki.Worker, 0)
	w.book.set("m2", pki.Manager, 0)
	w.book.set("d1", pki.Worker, 5)
	layer := w.port.Layer(t.Context())
	go func() {
		for {
			if _, err := layer.Accept(); err != nil {
				return
			}
		}
	}()
	cast := controltest.Cast{Swarm: w.Swarm, Worker: "w1", Manager: "m2", Removed: "gone", Demoted: "d1", Generation: 6, Old: 3}
	controltest.Matrix(t, w.peer, w.port.Table(), cast.Callers(t))
	if n := len(w.port.Table()); n != 10 {
		t.Errorf("the table has %d rows, want 10", n)
	}
}

func TestNew_RefusesRoutes(t *testing.T) {
	h := control.Handle(echo)
	for name, tt := range map[string]struct {
		routes []control.Route
		err    string
	}{
		"no class":      {[]control.Route{{Pattern: "POST /x", Handler: h}}, "is for no class"},
		"unknown class": {[]control.Route{{For: []control.Class{"king"}, Pattern: "POST /x", Handler: h}}, `unknown class "king"`},
		"no method":     {[]control.Route{{For: members(), Pattern: "/x", Handler: h}}, "is not METHOD /path"},
		"no handler":    {[]control.Route{{For: members(), Pattern: "POST /x"}}, "has no handler"},
		"twice": {[]control.Route{
			{For: members(), Pattern: "POST /x", Handler: h},
			{For: []control.Class{control.Worker}, Pattern: "POST /x", Handler: h},
		}, "is there twice for class worker"},
	} {
		if _, err := control.New(control.Config{Routes: tt.routes}); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: got error %v, want %q", name, err, tt.err)
		}
	}
}
