package dispatcher

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/wire"
	"skep/store"
	"skep/store/object"
)

// batch is the most objects that are written at once.
const batch = 512

// report is what is to be written about a node and its tasks.
type report struct {
	node string
	// state, message, address, description, member, dataPath and boot, if not empty,
	// are the node's.
	state       swarm.NodeState
	message     string
	address     string
	description *swarm.NodeDescription
	// member is how the node can be a replica, as it says itself.
	member   *wire.Member
	dataPath string
	boot     string
	tasks    []wire.TaskStatus
	leaving  map[string]bool // tasks that are, or are not any more
	// done, if not nil, is called once the report is written.
	done func()
}

// report queues a report. Whatever comes while one write is under way goes
// into the next: the busier the store, the larger the writes.
func (t *term) report(r report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.reports = append(t.reports, r)
	signal(t.wakeup)
}

// write writes the reports, in order.
func (t *term) write(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.wakeup:
		}
		t.mu.Lock()
		reports := t.reports
		t.reports = nil
		t.mu.Unlock()
		for len(reports) > 0 {
			n, size := 0, 0
			for n < len(reports) && (n == 0 || size+len(reports[n].tasks) < batch) {
				size += 1 + len(reports[n].tasks)
				n++
			}
			if err := t.commitAll(ctx, reports[:n]); err != nil {
				return err
			}
			for _, r := range reports[:n] {
				if r.done != nil {
					r.done()
				}
			}
			reports = reports[n:]
		}
	}
}

// commitAll writes reports in as many commands as it takes: one may not hold them
// all. What no command can hold is left out.
func (t *term) commitAll(ctx context.Context, reports []report) error {
	err := t.commit(ctx, reports)
	if !errdefs.IsInvalidArgument(err) {
		return err
	}
	if len(reports) == 1 {
		r := reports[0]
		half := len(r.tasks) / 2
		if half == 0 {
			t.cfg.Logger.ErrorContext(ctx, "node's report not stored", "node", r.node, "err", err)
			return nil
		}
		rest := report{node: r.node, tasks: r.tasks[half:]}
		r.tasks = r.tasks[:half]
		return errors.Join(t.commitAll(ctx, []report{r}), t.commitAll(ctx, []report{rest}))
	}
	half := len(reports) / 2
	return errors.Join(t.commitAll(ctx, reports[:half]), t.commitAll(ctx, reports[half:]))
}

func (t *term) commit(ctx context.Context, reports []report) error {
	for {
		snap := t.cfg.Store.Snapshot()
		tx := store.Begin(snap)
		for _, o := range merge(snap, reports, time.Now()) {
			tx.Update(o)
		}
		if tx.Empty() {
			return nil
		}
		_, err := t.cfg.Store.Propose(ctx, tx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, store.ErrSequence) {
			return fmt.Errorf("write reports of nodes: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// merge is what the reports change: the nodes and tasks as they are to be.
func merge(snap *store.Snapshot, reports []report, now time.Time) (out []object.Object) {
	nodes := map[string]*object.Node{}
	tasks := changes{snap: snap, tasks: map[string]*object.Task{}}
	for _, r := range reports {
		if r.state != "" || r.description != nil || r.member != nil {
			if next := mergeNode(snap, nodes[r.node], r, now); next != nil {
				if nodes[r.node] == nil {
					out = append(out, next)
				}
				nodes[r.node] = next
			}
		}
		for id, is := range r.leaving {
			if task := tasks.change(r.node, id, func(t *object.Task) bool { return t.Leaving != is }); task != nil {
				task.Leaving = is
			}
		}
		for _, s := range r.tasks {
			task := tasks.change(r.node, s.ID, func(t *object.Task) bool { return advances(t.Status, s.Status) })
			if task == nil {
				continue
			}
			task.Status = s.Status
			task.AppliedAt = now.UnixNano()
			if s.Status.State == swarm.TaskStateRunning && task.RunningSince == 0 {
				task.RunningSince = task.AppliedAt
			}
		}
	}
	return append(out, tasks.out...)
}

// changes are tasks as they are to be.
type changes struct {
	snap  *store.Snapshot
	tasks map[string]*object.Task
	out   []object.Object // the same in order
}

// change is one of a node's tasks, to be changed in place; nil if there is no
// need to, or it is not the node's, which tells of its own only.
func (c *changes) change(node, id string, need func(*object.Task) bool) *object.Task {
	task := c.tasks[id]
	if task == nil {
		task, _ = c.snap.Tasks.Get(id)
	}
	if task == nil || task.NodeID != node || !need(task) {
		return nil
	}
	if c.tasks[id] == nil {
		task = task.Clone().(*object.Task)
		c.tasks[id] = task
		c.out = append(c.out, task)
	}
	return task
}

// mergeNode is the node after a report, or nil if that says nothing new. The
// copy next is changed in place if there is one already.
func mergeNode(snap *store.Snapshot, next *object.Node, r report, now time.Time) *object.Node {
	was := next
	if next == nil {
		n, ok := snap.Nodes.Get(r.node)
		if !ok {
			return nil
		}
		was, next = n, n.Clone().(*object.Node)
	}
	if r.state != "" {
		if next.Status.State != r.state {
			next.StateSince = now.UnixNano()
		}
		next.Status.State, next.Status.Message = r.state, r.message
	}
	if r.address != "" {
		next.Status.Addr = r.address
	}
	if r.description != nil {
		next.Description = *r.description
		// What is no address of one machine is of no use to the others.
		if a, err := netip.ParseAddr(r.dataPath); err == nil && !a.IsUnspecified() && !a.IsMulticast() {
			next.DataPath = a.Unmap().String()
		}
		next.Boot = r.boot[:min(len(r.boot), maxBoot)]
	}
	// A worker's word on this counts for nothing.
	if r.member != nil && next.Spec.Role == swarm.NodeRoleManager {
		next.RaftID = r.member.RaftID
		if next.ManagerStatus == nil {
			next.ManagerStatus = &swarm.ManagerStatus{}
		}
		next.ManagerStatus.Addr = r.member.Addr
	}
	if was != next && reflect.DeepEqual(was, next) {
		return nil
	}
	return next
}

// advances reports whether a node's word on a task is news. A state that lies
// behind the stored one, or that only a manager gives, is not.
func advances(have, told swarm.TaskStatus) bool {
	was, is := object.Rank(have.State), object.Rank(told.State)
	if is < object.Rank(swarm.TaskStateAssigned) || is > object.Rank(swarm.TaskStateRejected) || is < was {
		return false
	}
	return is > was || (!object.Ended(have.State) && !reflect.DeepEqual(have, told))
}
