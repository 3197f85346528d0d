package engine

import (
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"

	"skep/admin/filters"
)

// legacyEvent is an event as clients below 1.52 know it.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	events.Message
}

func legacy(m events.Message) legacyEvent {
	switch m.Type {
	case events.ContainerEventType:
		return legacyEvent{Status: string(m.Action), ID: m.Actor.ID, From: m.Actor.Attributes["image"], Message: m}
	case events.ImageEventType:
		return legacyEvent{Status: string(m.Action), ID: m.Actor.ID, Message: m}
	default:
		return legacyEvent{Message: m}
	}
}

// actorFilters are the filters that name an object of a type.
func actorFilters() []string {
	return []string{"config", "container", "daemon", "image", "network", "node", "plugin", "secret", "service", "volume"}
}

func wantsEvent(f filters.Filters, m events.Message) bool {
	// "health_status: healthy" is also found as "health_status".
	action, _, _ := strings.Cut(string(m.Action), ":")
	if !f.Exact("type", string(m.Type)) || !f.Exact("scope", m.Scope) ||
		!f.Exact("event", string(m.Action), action) || !f.Labels("label", m.Actor.Attributes) {
		return false
	}
	for _, key := range actorFilters() {
		if !f.Has(key) {
			continue
		}
		names := []string{m.Actor.ID, m.Actor.Attributes["name"]}
		if key == "image" && m.Type == events.ContainerEventType {
			names = []string{m.Actor.Attributes["image"]}
		} else if key != string(m.Type) {
			return false
		}
		if !f.Prefix(key, names...) {
			return false
		}
	}
	return true
}

func (a *API) events(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, append(actorFilters(), "event", "label", "scope", "type")...)
	if err != nil {
		return err
	}
	since, err := instant(r, "since")
	if err != nil {
		return err
	}
	until, err := instant(r, "until")
	if err != nil {
		return err
	}
	var seq uint64
	if since.IsZero() && until.IsZero() {
		seq = a.Events.end()
	}
	a.Events.listen(1)
	defer a.Events.listen(-1)
	flush, err := flushed(w, "application/json")
	if err != nil {
		return err
	}
	timeout, stop := deadline(until)
	defer stop()
	out := json.NewEncoder(w)
	for {
		ms, next, news := a.Events.from(seq)
		seq = next
		for _, m := range ms {
			at := time.Unix(0, m.TimeNano)
			if m.Type == events.ImageEventType && m.Action == events.ActionCreate && minorOf(r) < 46 {
				continue // older clients do not know it
			}
			if at.Before(since) || !until.IsZero() && at.After(until) || !wantsEvent(f, m) {
				continue
			}
			if err := out.Encode(legacy(m)); err != nil {
				return err
			}
		}
		if err := flush(); err != nil {
			return err
		}
		select {
		case <-news:
		case <-timeout:
			return nil
		case <-r.Context().Done():
			return nil
		}
	}
}
