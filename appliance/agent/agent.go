// Package agent is the node as a worker: it keeps a session with the manager
// that leads, and runs the tasks that it is assigned, each by its own state
// machine.
//
// What it is assigned and how far it came it keeps in one sealed file, so that
// a node which starts without any manager runs what it ran, and a node that
// starts again takes over the containers it left. It declares what it needs of
// the runtime ([Executor], [Controller]) and knows nothing of containers.
//
// It promises that a task only moves forward, that a task never starts twice at
// once, and that nothing is acknowledged before it is on disk. It does not
// decide what runs: a task that ended is the manager's to replace.
package agent

import (
	"bytes"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/moby/moby/api/types/swarm"
	"golang.org/x/sync/errgroup"

	"skep/appliance/wire"
	"skep/store/object"
)

// Executor turns tasks into whatever runs them.
type Executor interface {
	// Describe is the node as it is now.
	Describe(ctx context.Context) (swarm.NodeDescription, error)
	// Controller is the handle of one task, new or left by an earlier run.
	Controller(a *object.Assignment) (Controller, error)
	// Retain removes what belongs to other tasks than these.
	Retain(ctx context.Context, taskIDs []string) error
}

// Controller runs one task, one verb for each phase. Each verb is idempotent
// and may be called again after a restart of the node, with the phase done,
// half done or not begun. An error that wraps [object.ErrTemporary] or the
// context's is tried again; any other ends the task, which is then failed, or
// rejected if it could not be prepared or the error wraps [object.ErrUnfit].
type Controller interface {
	// Prepare pulls and creates.
	Prepare(ctx context.Context) error
	// Start returns when the task is started, and healthy if it says so.
	Start(ctx context.Context) error
	// Wait returns when the task ended: nil if well, an [object.ExitError] if not.
	Wait(ctx context.Context) error
	// Shutdown stops the task: signal, grace period, kill.
	Shutdown(ctx context.Context) error
	// Remove removes all traces of the task.
	Remove(ctx context.Context) error
	// Status is what the API shows of the task's container, nil if there is none.
	Status(ctx context.Context) (*swarm.ContainerStatus, []swarm.PortConfig, error)
}

// Sealer encrypts what is stored.
type Sealer interface {
	Seal(domain string, plain []byte) []byte
	Open(domain string, sealed []byte) ([]byte, error)
}

// Config is what an agent needs; NetworksFile may be empty, and the functions from
// Swarm on may be nil.
type Config struct {
	NodeID string
	// File is where the tasks are kept, and NetworksFile what is known of their
	// networks, in directories that exist.
	File, NetworksFile string

	Sealer   Sealer
	Executor Executor
	// Dial connects to the manager that leads, as this node.
	Dial   func(ctx context.Context) (net.Conn, error)
	Logger *slog.Logger
	// Swarm takes what a manager says of the swarm. Of what comes while a call
	// lasts, only the last is passed on; ctx ends with the session.
	Swarm func(ctx context.Context, s wire.Swarm) error
	// Nodes takes where the members of the swarm are, all of them, in the order of
	// their IDs, as addresses without a port.
	Nodes func(all []wire.Peer)
	// Networks takes what the node is to know of the networks of its tasks, at the
	// start what it knew when it last ran. It must not block. Each view that is taken
	// is to be answered by [Agent.Programmed], unless another has come since; without
	// a function there is nothing to program.
	Networks func(v *wire.NetworkView)
	// Tunnels takes the keys of encrypted networks. It must not block.
	Tunnels func(t *wire.Tunnels)
	// Invited opens the stream of that name to the manager that leads and serves
	// it until it ends; its ctx is that of Run.
	Invited func(ctx context.Context, stream string)
	// Member is how this node can be a replica, nil if it cannot. After a change
	// call [Agent.Refresh].
	Member func() *wire.Member
	// DataPath is the IP address for the traffic between containers.
	DataPath func(ctx context.Context) string
	// Boot is another one whenever the kernel has lost the keys of encrypted
	// networks. After a change call [Agent.Refresh].
	Boot func() string
	// Refused is told why a manager does not want the node's session.
	Refused func(ctx context.Context, err error)
	// Holdings tells the images that the node has, all of them first, until ctx
	// ends with the session. A message must fit in a frame.
	Holdings func(ctx context.Context, send func(*wire.Holdings) error) error
}

// Agent runs a node's tasks.
type Agent struct {
	cfg      Config
	instance string // of this process

	// keys is the version of the gossip's keys that Config.Swarm has taken in.
	keys     atomic.Uint64
	networks networks

	saving sync.Mutex // held while the file is written, before mu

	mu      sync.Mutex // guards all below
	items   map[item]wire.Item
	workers map[string]*worker
	node    object.NodeInfo
	// unsent are the statuses that the manager has not acknowledged.
	unsent map[string]swarm.TaskStatus
	// retained: nothing is left of tasks that are not assigned.
	retained bool

	news    chan struct{}      // size 1: unsent has changed
	dirty   chan struct{}      // size 1: the file is behind
	refresh chan struct{}      // size 1: the node may be another than was told
	hurry   chan struct{}      // size 1: another attempt to get a session may succeed
	bye     chan chan struct{} // takes what closes when the manager knows that the node leaves
	streams chan struct{}      // holds a value for each stream that is being served
}

type item struct {
	kind object.Kind
	key  string
}

// New is an agent that does not run yet.
func New(cfg Config) *Agent {
	return &Agent{
		cfg:      cfg,
		instance: object.NewID(),
		bye:      make(chan chan struct{}),
		items:    map[item]wire.Item{},
		workers:  map[string]*worker{},
		node:     object.NodeInfo{ID: cfg.NodeID},
		unsent:   map[string]swarm.TaskStatus{},
		news:     make(chan struct{}, 1),
		dirty:    make(chan struct{}, 1),
		refresh:  make(chan struct{}, 1),
		hurry:    make(chan struct{}, 1),
		networks: networks{news: make(chan struct{}, 1), said: make(chan struct{}, 1)},
		streams:  make(chan struct{}, maxStreams),
	}
}

// Refresh makes the agent look at the node and at Config.Member again, and tell
// the manager what changed.
func (a *Agent) Refresh() { signal(a.refresh) }

// Run runs the node's tasks until ctx ends; what runs then goes on running.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if _, err := a.describe(ctx); err != nil {
		a.cfg.Logger.WarnContext(ctx, "node not described", "err", err)
	}
	a.adoptNetworks(ctx)
	if err := a.adopt(ctx, g); err != nil {
		return err
	}
	g.Go(func() error { return a.connect(ctx, g) })
	g.Go(func() error { return a.keepSaved(ctx) })
	g.Go(func() error { return a.keepNetworks(ctx) })
	return g.Wait()
}

// adopt goes on with the tasks of the file.
func (a *Agent) adopt(ctx context.Context, g *errgroup.Group) error {
	items, found, err := a.load()
	if err != nil {
		// The managers know what this node is to run; what runs is kept until
		// they have said so.
		a.cfg.Logger.ErrorContext(ctx, "stored tasks lost", "err", err)
		return nil
	}
	if !found {
		return nil
	}
	a.mu.Lock()
	a.items = items
	a.mu.Unlock()
	a.retain(ctx)
	return a.apply(ctx, g)
}

// retain lets the executor clean up what belongs to no task. If it cannot, it
// is asked again with the next complete set.
func (a *Agent) retain(ctx context.Context) {
	a.mu.Lock()
	var ids []string
	for i := range a.items {
		if i.kind == object.KindTask {
			ids = append(ids, i.key)
		}
	}
	a.mu.Unlock()
	slices.Sort(ids)
	err := a.cfg.Executor.Retain(ctx, ids)
	if err != nil {
		a.cfg.Logger.WarnContext(ctx, "leavings of other tasks not removed", "err", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.retained = err == nil
}

// apply makes the workers those of the assigned tasks.
func (a *Agent) apply(ctx context.Context, g *errgroup.Group) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, data := range a.items {
		if i.kind != object.KindTask {
			continue
		}
		w := a.workers[i.key]
		if w != nil && bytes.Equal(w.data, data.Data) {
			continue
		}
		as, err := a.assignmentLocked(i.key)
		if err != nil {
			return err
		}
		if w != nil {
			w.update(as, data.Data)
			continue
		}
		w = newWorker(a, as, data.Data)
		a.workers[i.key] = w
		g.Go(func() error { w.run(ctx); return nil })
	}
	for id, w := range a.workers {
		if _, ok := a.items[item{object.KindTask, id}]; !ok {
			w.remove()
		}
	}
	return nil
}

// assignmentLocked puts a task together with what it refers to.
func (a *Agent) assignmentLocked(id string) (*object.Assignment, error) {
	o, err := a.items[item{object.KindTask, id}].Unpack()
	if err != nil {
		return nil, err
	}
	as := &object.Assignment{Task: o.(*object.Task), Node: a.node}
	rev, ok := a.items[item{object.KindRevision, object.RevisionKey(as.Task.ServiceID, as.Task.SpecVersion)}]
	if !ok {
		return as, nil // the executor refuses it
	}
	if o, err = rev.Unpack(); err != nil {
		return nil, err
	}
	as.Revision = o.(*object.Revision)
	c := as.Revision.Spec.ContainerSpec
	if c == nil {
		return as, nil
	}
	for _, ref := range c.Secrets {
		if i, ok := a.items[item{object.KindSecret, ref.SecretID}]; ok {
			if o, err = i.Unpack(); err != nil {
				return nil, err
			}
			as.Secrets = append(as.Secrets, o.(*object.Secret))
		}
	}
	for _, ref := range c.Configs {
		if i, ok := a.items[item{object.KindConfig, ref.ConfigID}]; ok {
			if o, err = i.Unpack(); err != nil {
				return nil, err
			}
			as.Configs = append(as.Configs, o.(*object.Config))
		}
	}
	return as, nil
}

// told notes a status for the manager and the file.
func (a *Agent) told(id string, s swarm.TaskStatus) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.unsent[id] = s
	signal(a.news)
	signal(a.dirty)
}

// gone forgets a task that was removed.
func (a *Agent) gone(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.workers, id)
	delete(a.unsent, id)
}

// Tasks are the IDs of the tasks that the agent has.
func (a *Agent) Tasks() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Sorted(maps.Keys(a.workers))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
