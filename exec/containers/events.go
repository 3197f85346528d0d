package containers

import (
	"maps"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/events"
)

// tell publishes what happened to a container; more are pairs of attributes.
func (e *Engine) tell(c *instance, action events.Action, more ...string) {
	if e.cfg.Publish == nil {
		return
	}
	r := c.rec()
	attrs := maps.Clone(r.Config.Labels)
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs["image"], attrs["name"] = r.Config.Image, r.Name
	for i := 0; i+1 < len(more); i += 2 {
		attrs[more[i]] = more[i+1]
	}
	now := time.Now()
	e.cfg.Publish(events.Message{
		Type: events.ContainerEventType, Action: action,
		Actor: events.Actor{ID: c.id, Attributes: attrs},
		Scope: "local", Time: now.Unix(), TimeNano: now.UnixNano(),
	})
}

func (e *Engine) tellDie(c *instance, s status) {
	took := s.FinishedAt.Sub(s.StartedAt)
	e.tell(c, events.ActionDie, "exitCode", strconv.Itoa(s.ExitCode),
		"execDuration", strconv.Itoa(int(took.Seconds())))
}
