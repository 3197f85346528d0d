// Package guests asks the managers, for containers that no service made, for
// places on attachable networks of the swarm, and gives them back.
//
// The node makes up the ID of every place that it asks for, so it knows which
// of those that the leader has are in use here: all others are given back, now
// or when a manager answers again. A container's end never waits for that.
package guests

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/exec/containers"
	"skep/store/object"
)

const (
	// attachWait is how long a place may take, with all questions for a manager
	// that leads; the leader itself waits 20 s for addresses.
	attachWait = 25 * time.Second
	// askAgain is the pause before the managers are asked once more; it doubles
	// up to askRarely.
	askAgain  = 250 * time.Millisecond
	askRarely = 30 * time.Second
	// answerWait is how long the managers may take to answer another question.
	answerWait = 10 * time.Second
	// lookAfter is how often the leader's guests are compared with those in use.
	lookAfter = 5 * time.Minute
)

// Managers are asked; membership.Membership is them. Errors are of the kind not
// found when the node is in no swarm, unavailable when nobody answers.
type Managers interface {
	AttachGuest(ctx context.Context, r *wire.GuestRequest) (*wire.GuestReply, error)
	ListGuests(ctx context.Context) (*wire.GuestList, error)
	ReleaseGuests(ctx context.Context, r *wire.GuestRelease) error
}

// Config is what a Client needs; all of it is required.
type Config struct {
	// Managers may be nil until they are known.
	Managers func() Managers
	Logger   *slog.Logger
}

// Client is the guests of this node.
type Client struct {
	cfg  Config
	wake chan struct{} // size 1

	mu sync.Mutex
	// held are the places, by container, that are in use or being asked for.
	held map[string][]string // guarded by mu
	// back are those to be given back.
	back map[string]bool // guarded by mu
}

var _ containers.Guests = (*Client)(nil)

// NewClient is a client that holds nothing.
func NewClient(cfg Config) *Client {
	return &Client{cfg: cfg, wake: make(chan struct{}, 1), held: map[string][]string{}, back: map[string]bool{}}
}

// Attach implements [containers.Guests].
func (c *Client) Attach(ctx context.Context, r containers.GuestRequest) (object.Overlay, error) {
	q := &wire.GuestRequest{
		ID: object.NewID(), ContainerID: r.ContainerID, Name: r.Name,
		Network: r.Network, Aliases: r.Aliases, Wanted: r.Wanted,
	}
	if err := q.Check(); err != nil {
		return object.Overlay{}, err
	}
	c.mu.Lock()
	c.held[r.ContainerID] = append(c.held[r.ContainerID], q.ID)
	c.mu.Unlock()
	reply, err := c.attach(ctx, q)
	if err != nil {
		c.ReleaseOne(r.ContainerID, q.ID) // the answer may have been lost
		return object.Overlay{}, err
	}
	return object.Overlay{Network: reply.Network, Name: reply.NetworkName, Task: q.ID, Addresses: reply.Addresses, Aliases: r.Aliases}, nil
}

// attach asks until there is an answer.
func (c *Client) attach(ctx context.Context, q *wire.GuestRequest) (reply *wire.GuestReply, err error) {
	ctx, cancel := context.WithTimeout(ctx, attachWait)
	defer cancel()
	for wait := askAgain; ; wait *= 2 {
		var m Managers
		if m, err = c.managers(); err == nil {
			reply, err = m.AttachGuest(ctx, q)
		}
		switch {
		case errdefs.IsUnavailable(err) && pause(ctx, wait) == nil:
			continue
		case errdefs.IsNotFound(err):
			// The same words whether there is no swarm or no such network.
			err = object.Errorf(errdefs.ErrNotFound, "network %s not found", q.Network)
		}
		return reply, err
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ReleaseOne implements [containers.Guests].
func (c *Client) ReleaseOne(container, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[container] = slices.DeleteFunc(c.held[container], func(have string) bool { return have == id })
	if len(c.held[container]) == 0 {
		delete(c.held, container)
	}
	c.back[id] = true
	c.wakeLocked()
}

// Release implements [containers.Guests].
func (c *Client) Release(container string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range c.held[container] {
		c.back[id] = true
		c.wakeLocked()
	}
	delete(c.held, container)
}

// Retain implements [containers.Guests].
func (c *Client) Retain(byContainer map[string][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held = map[string][]string{}
	for id, places := range byContainer {
		c.held[id] = slices.Clone(places)
	}
}

func (c *Client) wakeLocked() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// due are places to be given back.
func (c *Client) due() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := slices.Sorted(maps.Keys(c.back))
	return ids[:min(len(ids), wire.MaxGuests)]
}

// strays are those of the leader's guests that are not in use here. What is
// being asked for counts as in use from before it is asked for.
func (c *Client) strays(known []string) (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	used := map[string]bool{}
	for _, places := range c.held {
		for _, id := range places {
			used[id] = true
		}
	}
	for _, id := range known {
		if !used[id] {
			ids = append(ids, id)
		}
	}
	return ids
}

// returned forgets places that the leader has back.
func (c *Client) returned(ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.back, id)
	}
}
