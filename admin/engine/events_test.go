package engine_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/swarm"
	"github.com/moby/moby/client"

	"skep/admin/engine"
	"skep/store"
	"skep/store/object"
)

func publish(j *engine.Journal, at int64, kind events.Type, action events.Action, id string, attributes map[string]string) {
	j.Publish(events.Message{Type: kind, Action: action, Actor: events.Actor{ID: id, Attributes: attributes}, Time: at, TimeNano: at * 1e9})
}

func TestEvents_ShowThePastByTimeAndFilter(t *testing.T) {
	m := newManager(t)
	publish(m.events, 10, events.ContainerEventType, events.ActionStart, "c1", map[string]string{"name": "web", "image": "nginx", "tier": "front"})
	publish(m.events, 20, events.ContainerEventType, "health_status: healthy", "c1", map[string]string{"name": "web", "image": "nginx"})
	publish(m.events, 30, events.ImageEventType, events.ActionPull, "nginx:latest", map[string]string{"name": "nginx"})
	publish(m.events, 40, events.NetworkEventType, events.ActionConnect, "n1", map[string]string{"name": "bridge", "container": "c1"})
	tests := []struct{ since, until, filters, want string }{
		{"0", "100", ``, "start health_status: healthy pull connect"},
		{"20", "30", ``, "health_status: healthy pull"},
		{"20.5", "100.000000001", ``, "pull connect"},
		{"", "100", `{"type":["container"]}`, "start health_status: healthy"},
		{"", "100", `{"event":["health_status"]}`, "health_status: healthy"},
		{"", "100", `{"container":["web"]}`, "start health_status: healthy"},
		{"", "100", `{"container":["c"],"event":["start","die"]}`, "start"},
		{"", "100", `{"image":["nginx"]}`, "start health_status: healthy pull"},
		{"", "100", `{"label":["tier=front"]}`, "start"},
		{"", "100", `{"scope":["swarm"]}`, ""},
	}
	for _, tt := range tests {
		_, header, body := m.call(t, "GET", "/events?since="+tt.since+"&until="+tt.until+"&filters="+url.QueryEscape(tt.filters), "")
		if got := header.Get("Content-Type"); got != "application/json" {
			t.Errorf("content type %s", got)
		}
		var got []string
		for d := json.NewDecoder(strings.NewReader(body)); d.More(); {
			var e events.Message
			if err := d.Decode(&e); err != nil {
				t.Fatal(err)
			}
			got = append(got, string(e.Action))
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%+v: got %q", tt, got)
		}
	}
	_, _, body := m.call(t, "GET", "/events?until=15", "")
	want := `{"status":"start","id":"c1","from":"nginx","Type":"container","Action":"start","Actor":{"ID":"c1","Attributes":{"image":"nginx","name":"web","tier":"front"}},"scope":"local","time":10,"timeNano":10000000000}`
	if body != want {
		t.Errorf("got  %s\nwant %s", body, want)
	}
	publish(m.events, 50, events.ImageEventType, events.ActionCreate, "i1", nil)
	for version, want := range map[string]int{"v1.45": 0, "v1.46": 1} {
		if _, _, body := m.call(t, "GET", "/"+version+"/events?until=100&since=45", ""); strings.Count(body, "create") != 2*want {
			t.Errorf("%s is told of created images: %s", version, body)
		}
	}
	for query, want := range map[string]string{"since=x": "invalid since 'x': want seconds since 1970 or RFC 3339", "filters=" + url.QueryEscape(`{"x":["y"]}`): "invalid filter 'x'"} {
		if status, _, body := m.call(t, "GET", "/events?"+query, ""); status != 400 || message(t, body) != want {
			t.Errorf("%s: %d %s", query, status, body)
		}
	}
}

func TestEvents_TellWhatChangesInTheSwarm(t *testing.T) {
	m := initialised(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	watched := make(chan error, 1)
	go func() { watched <- m.events.Watch(ctx, m.store) }()
	stream := m.client(t).Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("scope", "swarm")})
	next := func(want string) {
		t.Helper()
		select {
		case e := <-stream.Messages:
			b, err := json.Marshal(e.Actor.Attributes)
			if err != nil {
				t.Fatal(err)
			}
			if got := fmt.Sprintf("%s %s %s", e.Type, e.Action, b); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		case err := <-stream.Err:
			t.Fatal(err)
		}
	}
	for m.events.Readers() == 0 {
		time.Sleep(time.Millisecond)
	}
	m.ok(t, "POST", "/secrets/create", `{"Name":"s","Data":"aGk="}`, nil)
	next(`secret create {"name":"s"}`)
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"one"}}}`, nil)
	next(`service create {"name":"web"}`)
	web := m.service(t, "web")
	m.ok(t, "POST", fmt.Sprintf("/services/web/update?version=%d", web.Version.Index), `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"two"}},"Mode":{"Replicated":{"Replicas":2}}}`, nil)
	next(`service update {"image.new":"two","image.old":"one","name":"web","replicas.new":"2","replicas.old":"1"}`)
	m.store.Write(t, func(tx *store.Tx) {
		o := m.service(t, "web").Clone().(*object.Service)
		o.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating}
		tx.Update(o)
	})
	next(`service update {"name":"web","updatestate.new":"updating"}`)
	m.store.Write(t, func(tx *store.Tx) {
		n, _ := m.store.Snapshot().Nodes.Get(m.nodeID)
		n = n.Clone().(*object.Node)
		n.Spec.Availability, n.Status.State = swarm.NodeAvailabilityDrain, swarm.NodeStateDown
		tx.Update(n)
	})
	next(`node update {"availability.new":"drain","availability.old":"active","name":"node1","state.new":"down","state.old":"ready"}`)
	m.ok(t, "DELETE", "/services/web", "", nil)
	next(`service remove {"name":"web"}`)
	m.ok(t, "DELETE", "/secrets/s", "", nil)
	next(`secret remove {"name":"s"}`)
	cancel()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Errorf("watch ended with %v", err)
	}
}

func TestJournal_KeepsTheLastEventsForWhoComesLate(t *testing.T) {
	m := newManager(t)
	for i := range 3000 {
		publish(m.events, int64(i+1), events.VolumeEventType, events.ActionMount, fmt.Sprint(i), nil)
	}
	_, _, body := m.call(t, "GET", "/events?until=99999", "")
	lines := 0
	for s := bufio.NewScanner(strings.NewReader(body)); s.Scan(); {
		lines++
	}
	if lines != 1024 || !strings.Contains(body, `"ID":"2999"`) || strings.Contains(body, `"ID":"1975"`) {
		t.Errorf("%d events are left", lines)
	}
}
