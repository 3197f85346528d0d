package engine_test

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"testing"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"

	"skep/admin/engine"
	"skep/store"
	"skep/store/object"
)

// BenchmarkTaskList is what a client's progress bar asks for five times a
// second, in a swarm of 10,000 tasks.
func BenchmarkTaskList(b *testing.B) {
	m := offline(b)
	m.initialise(b)
	m.store.Write(b, func(tx *store.Tx) {
		for _, name := range []string{"web", "other"} {
			store.CreateService(tx, spec(name, "busybox"), nil)
		}
	})
	web, err := m.store.Snapshot().Services.Find("web")
	if err != nil {
		b.Fatal(err)
	}
	other, err := m.store.Snapshot().Services.Find("other")
	if err != nil {
		b.Fatal(err)
	}
	for n := range 10 {
		m.store.Write(b, func(tx *store.Tx) {
			for slot := range 1000 {
				o := other
				if n == 0 {
					o = web
				}
				tx.Create(&object.Task{
					ID: object.NewID(), ServiceID: o.ID, SpecVersion: o.SpecVersion, Slot: slot + 1, NodeID: m.nodeID,
					DesiredState: swarm.TaskStateRunning, Status: swarm.TaskStatus{State: swarm.TaskStateRunning},
				})
			}
		})
	}
	target := "/v1.51/tasks?filters=" + url.QueryEscape(`{"service":{"`+web.ID+`":true},"_up-to-date":{"true":true}}`)
	h := m.handler()
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
		if w.Code != 200 {
			b.Fatal(w.Body)
		}
	}
	b.ReportMetric(1000*float64(b.N)/b.Elapsed().Seconds(), "tasks/s")
}

func BenchmarkJournal_Publish(b *testing.B) {
	j := engine.NewJournal()
	b.ReportAllocs()
	for b.Loop() {
		j.Publish(events.Message{Type: events.ContainerEventType, Action: events.ActionStart})
	}
}
