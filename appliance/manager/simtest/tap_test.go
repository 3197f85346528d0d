package simtest_test

import (
	"net"
	"slices"
	"sync"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
	"skep/store/replica"
)

// tap looks at all that a manager sends to a node.
type tap struct {
	net.Conn
	s      *swarmed
	node   string
	recent *recent
}

// Write takes one frame, as wire.Conn writes them.
func (t *tap) Write(frame []byte) (int, error) {
	var m wire.Message
	if err := object.Decode(frame[4:], &m); err != nil {
		t.s.trace.Violate("a manager sends %s what is no message: %v", t.node, err)
	} else if m.Assignments != nil {
		for _, i := range m.Assignments.Items {
			if i.Kind == object.KindSecret && len(i.Data) > 0 && !t.recent.uses(t.node, i.Key) {
				t.s.trace.Violate("%s is sent secret %s, which none of its tasks uses", t.node, i.Key)
			}
		}
	}
	return t.Conn.Write(frame)
}

// recent are the states that a manager has lately had.
type recent struct {
	member  *replica.Member
	intents *intents

	mu    sync.Mutex
	snaps []*store.Snapshot
	times []time.Time
}

// memory is how old a state may be that what is sent is made of: it may have to
// wait for the node to take what was sent before.
const memory = 10 * time.Second

// follow notes the states until done closes.
func (r *recent) follow(done <-chan struct{}) {
	for {
		news := r.member.News()
		r.intents.note(r.member.Snapshot())
		r.mu.Lock()
		for len(r.times) > 0 && time.Since(r.times[0]) > memory {
			r.snaps, r.times = r.snaps[1:], r.times[1:]
		}
		// The time is that of its end, which is not known yet for the last.
		if n := len(r.times); n > 0 {
			r.times[n-1] = time.Now()
		}
		r.snaps, r.times = append(r.snaps, r.member.Snapshot()), append(r.times, time.Now().Add(time.Hour))
		r.mu.Unlock()
		select {
		case <-done:
			return
		case <-news:
		}
	}
}

func (r *recent) uses(node, secret string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return uses(r.member.Snapshot(), node, secret) || slices.ContainsFunc(r.snaps, func(s *store.Snapshot) bool { return uses(s, node, secret) })
}

func uses(s *store.Snapshot, node, secret string) bool {
	for t := range s.Tasks.By(store.ByNode, node) {
		rev := s.Revision(t.ServiceID, t.SpecVersion)
		if rev != nil && slices.ContainsFunc(rev.Spec.ContainerSpec.Secrets, func(r *swarm.SecretReference) bool { return r.SecretID == secret }) {
			return true
		}
	}
	return false
}

// leak is a manager that sends every node all the secrets.
type leak struct {
	net.Conn
	member *replica.Member
}

// Write takes one frame.
func (l *leak) Write(frame []byte) (int, error) {
	var m wire.Message
	if err := object.Decode(frame[4:], &m); err != nil || m.Assignments == nil || !m.Assignments.Complete {
		return l.Conn.Write(frame)
	}
	has := map[string]bool{}
	for _, i := range m.Assignments.Items {
		has[i.Key] = true
	}
	for secret := range l.member.Snapshot().Secrets.All() {
		if item, err := wire.Pack(secret); err == nil && !has[secret.ID] {
			m.Assignments.Items = append(m.Assignments.Items, item)
		}
	}
	if err := wire.NewConn(l.Conn).Send(&m, 5*time.Second); err != nil {
		return 0, err
	}
	return len(frame), nil
}
