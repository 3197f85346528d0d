// SPDX-License-Identifier: Apache-2.0

// Package attach connects containers to the node's own networks: bridge, host
// and none.
//
// A container gets a network namespace, pinned below the run directory, that
// outlives this process; on the bridge also an address and the node's ports
// that it publishes. What is attached is kept in records beside the
// namespaces: a new process on the same directories finds everything as it
// was, and traffic does not notice. Everything in the kernel carries the
// node's scope in its name, so several nodes may share a machine.
//
// It neither starts nor watches containers, and does not balance over nodes.
package attach

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"skep/net/bridge"
	"skep/net/ingress"
	"skep/net/ipam"
	"skep/net/link"
	"skep/net/nft"
	"skep/store/object"
)

// Config is what an Attach needs.
type Config struct {
	// Dir keeps the node's choice of subnet.
	Dir string
	// RunDir keeps what ends with the machine: the namespaces (netns/<id>) and
	// the records (attach/<id>). It belongs on a tmpfs.
	RunDir string
	// Scope tells the nodes of one machine apart: six hexadecimal digits.
	Scope string
	// Ranges are where the bridge's subnet is chosen; nil means [ipam.NodeRanges].
	Ranges []ipam.Range
	// Name is the name of a container, for lists and errors; nil means there is none.
	Name   func(id string) string
	Logger *slog.Logger
}

// Attach is the attachments of a node.
type Attach struct {
	name   func(id string) string
	log    *slog.Logger
	scope  string
	link   *link.Conn
	bridge *bridge.Bridge
	local  ingress.Local
	disk   records

	// filter is the right to write the packet filter, and what is known of it:
	// who receives it has it until they send it back.
	filter chan *filter
	// unplugger is the turn to remove devices.
	unplugger chan struct{}

	saving sync.Mutex // held by who writes where the pool goes on; taken before mu

	mu      sync.Mutex
	ends    map[string]*record       // guarded by mu; a record in it is not changed, but replaced
	busy    map[string]chan struct{} // guarded by mu; endpoints that a verb works on; closed when it is done
	unplugs []*unplugging            // guarded by mu, as are their results
	pool    *ipam.Pool               // guarded by mu
	ports   *ingress.Ports           // guarded by mu; its system calls do not wait
}

// filter is the node's table in the kernel.
type filter struct {
	conn *nft.Conn
	now  nft.Table
	// checked is the ruleset's generation when the table was last read and found right.
	checked uint32
}

// Open recovers the attachments of an earlier process and makes the bridge and
// the packet filter's table. Connections that go through them go on.
func Open(ctx context.Context, c Config) (*Attach, error) {
	if !regexp.MustCompile(`^[0-9a-f]{6}$`).MatchString(c.Scope) {
		return nil, fmt.Errorf("open networks: scope %q: not six hexadecimal digits", c.Scope)
	}
	if c.Ranges == nil {
		c.Ranges = ipam.NodeRanges()
	}
	if c.Name == nil {
		c.Name = func(string) string { return "" }
	}
	a := &Attach{
		name: c.Name, log: c.Logger, scope: c.Scope,
		disk:   records{filepath.Join(c.RunDir, "attach"), filepath.Join(c.RunDir, "netns")},
		filter: make(chan *filter, 1), unplugger: make(chan struct{}, 1),
		ends: map[string]*record{}, busy: map[string]chan struct{}{}, ports: ingress.NewPorts(),
	}
	if err := a.open(ctx, c); err != nil {
		return nil, errors.Join(fmt.Errorf("open networks: %w", err), a.Close())
	}
	return a, nil
}

func (a *Attach) open(ctx context.Context, c Config) (err error) {
	for _, dir := range []string{c.Dir, a.disk.dir, a.disk.namespaces} {
		if err = os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if a.link, err = link.Open(); err != nil {
		return err
	}
	f := &filter{}
	if f.conn, err = nft.Open(); err != nil {
		return err
	}
	a.filter <- f
	a.unplugger <- struct{}{}
	found, err := a.disk.load(c.Logger)
	if err != nil {
		return err
	}
	name := "sk" + c.Scope
	a.bridge, err = bridge.Open(ctx, bridge.Config{Dir: c.Dir, Name: name, Ranges: c.Ranges, Link: a.link, Busy: anyOnBridge(found)})
	if err != nil {
		return err
	}
	a.local = ingress.Local{Table: "skep-" + c.Scope, Bridge: name, Subnet: a.bridge.Subnet}
	if a.pool, err = ipam.New(a.bridge.Subnet, a.bridge.Gateway, a.sandbox()); err != nil {
		return err
	}
	a.pool.Resume(a.disk.loadNext())
	return a.recover(ctx, found)
}

// Close leaves everything in the kernel as it is, but the ports' reservations.
func (a *Attach) Close() error {
	a.mu.Lock()
	a.ports.Close()
	a.mu.Unlock()
	if a.link != nil {
		a.link.Close()
	}
	select {
	case f := <-a.filter:
		return f.conn.Close()
	default:
		return nil
	}
}

// Destroy disconnects everything and removes the bridge and the table. It is
// for a node that is taken off a machine. The networks may not be used after.
func (a *Attach) Destroy(ctx context.Context) error {
	if err := a.Retain(ctx, nil); err != nil {
		return err
	}
	f, err := a.takeFilter(ctx)
	if err != nil {
		return err
	}
	defer func() { a.filter <- f }()
	return errors.Join(f.conn.Delete(nft.IPv4, a.local.Table), a.bridge.Remove())
}

// Attachment is what an endpoint got.
func (a *Attach) Attachment(id string) (object.Attachment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.ends[id]
	if !ok {
		return object.Attachment{}, false
	}
	return r.attachment(), true
}

// Attachments are what all endpoints got, in no order.
func (a *Attach) Attachments() []object.Attachment {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := make([]object.Attachment, 0, len(a.ends))
	for _, r := range a.ends {
		list = append(list, r.attachment())
	}
	return list
}

// Bridge is the node's own network as others see it who put something on it.
type Bridge struct {
	Name    string // of the device
	Subnet  netip.Prefix
	Gateway netip.Addr
	// Sandbox is the address that no container gets: the routing mesh's.
	Sandbox netip.Addr
}

// Bridge is the network that endpoints on "bridge" are on.
func (a *Attach) Bridge() Bridge {
	return Bridge{Name: a.bridge.Name, Subnet: a.bridge.Subnet, Gateway: a.bridge.Gateway, Sandbox: a.sandbox()}
}

func (a *Attach) sandbox() netip.Addr { return a.bridge.Gateway.Next() }

// begin waits until no other verb works on the endpoint. The function that it
// returns lets the next one go on.
func (a *Attach) begin(ctx context.Context, id string) (func(), error) {
	for {
		a.mu.Lock()
		other, ok := a.busy[id]
		if !ok {
			mine := make(chan struct{})
			a.busy[id] = mine
			a.mu.Unlock()
			return func() {
				a.mu.Lock()
				delete(a.busy, id)
				a.mu.Unlock()
				close(mine)
			}, nil
		}
		a.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (a *Attach) takeFilter(ctx context.Context) (*filter, error) {
	select {
	case f := <-a.filter:
		return f, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// publish makes the table serve the endpoints as they are now. Callers that
// wait for each other share a transaction: the last finds nothing to do.
func (a *Attach) publish(ctx context.Context) error {
	f, err := a.takeFilter(ctx)
	if err != nil {
		return err
	}
	defer func() { a.filter <- f }()
	next := ingress.Plan(a.local, a.endpoints())
	if err := f.conn.Apply(f.now, next); err != nil {
		// Someone else may have changed the table: then it is made anew.
		if again := f.conn.Replace(next); again != nil {
			return errors.Join(err, again)
		}
		a.log.WarnContext(ctx, "replaced packet filter table", "err", err)
	}
	f.now = next
	return nil
}

func (a *Attach) endpoints() []ingress.Endpoint {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ingress.Endpoint
	for _, r := range a.ends {
		if len(r.Made.Ports) > 0 {
			out = append(out, ingress.Endpoint{Address: r.address(), Ports: r.Made.Ports})
		}
	}
	return out
}

// device is the name of the node's end of an endpoint's pair of devices. It
// holds the address, which nobody else has meanwhile.
func (a *Attach) device(r *record) string {
	b := r.address().As4()
	return "v" + a.scope + hex.EncodeToString(b[:])
}

func (a *Attach) deviceAddress(name string) (netip.Addr, bool) {
	b, err := hex.DecodeString(strings.TrimPrefix(name, "v"+a.scope))
	if err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFromSlice(b)
}

func (a *Attach) saveNext() {
	a.saving.Lock()
	defer a.saving.Unlock()
	a.mu.Lock()
	next := a.pool.Next()
	a.mu.Unlock()
	if err := a.disk.saveNext(next); err != nil {
		a.log.Warn("did not save the next address", "err", err)
	}
}

// converge is how often Run looks whether the kernel is as it should be.
const converge = 10 * time.Second
