package dispatcher

import (
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store/object"
)

// listen takes in what the node says.
func (t *term) listen(s *session) error {
	for {
		// A node learns of a shorter period with its next beat.
		p := max(t.period(), usualPeriod)
		m, err := s.conn.Receive(missed * (p + p/inexact))
		if err != nil {
			return err
		}
		t.heard(s, time.Now())
		switch {
		case m.Beat != nil:
			t.holds(s, m.Beat.Keys)
			s.poke(func(o *outbox) { o.beat = true })
		case m.Describe != nil:
			err = t.describe(s, m.Describe)
		case m.Bye != nil:
			t.gone(s)
			err = errGone
		case m.Holdings != nil:
			t.hold(s, m.Holdings)
		case m.Programmed != nil:
			t.programmed(s, m.Programmed)
		case m.Acknowledge != nil:
			s.poke(func(o *outbox) { o.unanswered = false })
		case m.Statuses != nil:
			seq := m.Statuses.Sequence
			err = t.take(s, report{node: s.node, tasks: m.Statuses.Tasks, done: func() {
				s.poke(func(o *outbox) { o.acknowledge = max(o.acknowledge, seq) })
			}})
		default:
			err = object.Errorf(errdefs.ErrInvalidArgument, "node %s sent what only managers send", s.node)
		}
		if err != nil {
			return err
		}
	}
}

func (t *term) describe(s *session, d *wire.Describe) error {
	if err := checkDescription(s.node, &d.Description); err != nil {
		return err
	}
	t.mu.Lock()
	s.member = d.Member
	t.mu.Unlock()
	return t.take(s, report{node: s.node, description: &d.Description, member: d.Member, dataPath: d.DataPath, boot: d.Boot})
}

// checkDescription refuses what would burden every manager's memory.
func checkDescription(node string, d *swarm.NodeDescription) error {
	b, err := object.Encode(d)
	if err != nil || len(b) > maxDescription {
		return object.Errorf(errdefs.ErrInvalidArgument, "node %s describes itself in more than %d bytes", node, maxDescription)
	}
	return nil
}

// take queues a report of a session that is under way. A node that sends more
// than can be stored is cut off before it fills the memory.
func (t *term) take(s *session, r report) error {
	if s.pending.Add(1) > maxPending {
		return object.Errorf(errdefs.ErrResourceExhausted, "node %s reports faster than can be stored", s.node)
	}
	done := r.done
	r.done = func() {
		s.pending.Add(-1)
		if done != nil {
			done()
		}
	}
	t.report(r)
	return nil
}
