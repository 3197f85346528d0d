// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	"golang.org/x/sync/errgroup"

	"skep/net/ingress"
	"skep/net/ipam"
	"skep/net/link"
	"skep/store/object"
)

// The node's networks.
const (
	onBridge = "bridge"
	onHost   = "host"
	onNone   = "none"
)

// eth0 is the device's name in a container that asks for no other.
const eth0 = "eth0"

// Connect makes an endpoint. For one that exists and is asked for in the same
// way it is a question; one that is asked for differently is made anew.
//
// Of an endpoint's overlays it keeps the record and makes nothing: the devices
// are put into its namespace by others.
func (a *Attach) Connect(ctx context.Context, e object.Endpoint) (object.Attachment, error) {
	if err := checkID(e.ID); err != nil {
		return object.Attachment{}, err
	}
	e = named(e)
	done, err := a.begin(ctx, e.ID)
	if err != nil {
		return object.Attachment{}, err
	}
	defer done()
	a.mu.Lock()
	r := a.ends[e.ID]
	a.mu.Unlock()
	if r != nil {
		if a.serves(r, e) {
			return r.attachment(), nil
		}
		if err = a.disconnect(ctx, r); err != nil {
			return object.Attachment{}, err
		}
	}
	r = &record{Asked: e.Clone(), Made: object.Attachment{Endpoint: e.Clone()}}
	r.Made.EndpointID = endpointID(e.ID)
	r.Made.NetworkID = a.bridge.IDs[e.Network]
	switch {
	case e.Network == onBridge && e.Internal && len(e.Ports) == 0:
		r.Made.Namespace = a.disk.namespace(e.ID)
		err = a.connectNone(r)
	case e.Network == onBridge:
		err = a.connectBridge(ctx, r)
	case e.Network == onHost:
		// The node's own ports are the container's: nothing to publish.
		r.Made.Ports = nil
		err = a.keep(r)
	case e.Network == onNone:
		r.Made.Ports = nil
		r.Made.Namespace = a.disk.namespace(e.ID)
		err = a.connectNone(r)
	default:
		err = object.Errorf(errdefs.ErrNotFound, "network %s not found", e.Network)
	}
	if err != nil {
		return object.Attachment{}, err
	}
	return r.attachment(), nil
}

// Amend changes what is kept of an endpoint that is there: its overlays, which
// others make, and what it wants of the resolver.
func (a *Attach) Amend(ctx context.Context, e object.Endpoint) (object.Attachment, error) {
	done, err := a.begin(ctx, e.ID)
	if err != nil {
		return object.Attachment{}, err
	}
	defer done()
	a.mu.Lock()
	r := a.ends[e.ID]
	a.mu.Unlock()
	if r == nil {
		return object.Attachment{}, object.Errorf(errdefs.ErrNotFound, "endpoint %s not found", shortID(e.ID))
	}
	e = e.Clone()
	next := &record{Asked: r.Asked.Clone(), Made: r.Made.Clone()}
	next.Asked.Overlays, next.Asked.DNS = e.Overlays, e.DNS
	next.Made.Endpoint.Overlays, next.Made.DNS = e.Overlays, e.DNS
	if err := a.keep(next); err != nil {
		return object.Attachment{}, err
	}
	return next.attachment(), nil
}

// Serves reports whether the endpoint is there as it is asked for, so that
// Connect would change nothing.
func (a *Attach) Serves(e object.Endpoint) bool {
	a.mu.Lock()
	r, ok := a.ends[e.ID]
	a.mu.Unlock()
	return ok && a.serves(r, named(e))
}

func (a *Attach) serves(r *record, e object.Endpoint) bool {
	return bytes.Equal(essence(r.Asked), essence(e)) && a.whole(r)
}

// named gives the network that is meant without a name its name.
func named(e object.Endpoint) object.Endpoint {
	if e.Network == "" || e.Network == "default" {
		e.Network = onBridge
	}
	return e
}

// essence is what two endpoints have in common that ask for the same, whether
// they were read from a record or not.
func essence(e object.Endpoint) []byte {
	if len(e.Ports) == 0 {
		e.Ports = nil
	}
	b, err := json.Marshal(e)
	if err != nil {
		panic(fmt.Sprintf("endpoint %+v: %v", e, err)) // it has only fields that can be
	}
	return b
}

// whole reports whether an endpoint's namespace is still there.
func (a *Attach) whole(r *record) bool {
	return r.Made.Namespace == "" || link.Pinned(r.Made.Namespace)
}

func (a *Attach) connectNone(r *record) error {
	if err := link.Remove(r.Made.Namespace); err != nil {
		return err
	}
	if err := link.Create(r.Made.Namespace, link.Loopback); err != nil {
		return err
	}
	if err := a.keep(r); err != nil {
		return errors.Join(err, link.Remove(r.Made.Namespace))
	}
	return nil
}

// connectBridge reserves, then builds, then publishes. What it did is undone
// in the opposite order when a step fails; what a crash leaves has no record
// and is swept away by the next process.
func (a *Attach) connectBridge(ctx context.Context, r *record) error {
	if err := a.reserve(r); err != nil {
		return err
	}
	if err := a.build(r); err != nil {
		a.unreserve(r)
		return err
	}
	if len(r.Made.Ports) == 0 {
		return nil
	}
	err := a.publish(ctx)
	if err == nil {
		err = a.forgetStale(r)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("publish ports: %w", err), a.disconnect(context.WithoutCancel(ctx), r))
	}
	return nil
}

// reserve takes an address and ports.
func (a *Attach) reserve(r *record) error {
	id := r.Asked.ID
	ports, addr, err := a.takeBoth(r.Asked.Ports)
	if used := (*ingress.InUseError)(nil); errors.As(err, &used) {
		return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w",
			cmp.Or(a.name(id), shortID(id)), r.Made.EndpointID, err)
	}
	if err != nil {
		return err
	}
	r.Made.Ports = ports
	r.Made.Address = netip.PrefixFrom(addr, a.bridge.Subnet.Bits()).String()
	r.Made.Gateway = a.bridge.Gateway.String()
	r.Made.MAC = ipam.MAC(addr).String()
	r.Made.Interface = a.device(r)
	r.Made.Namespace = a.disk.namespace(id)
	r.Made.Nameserver = Nameservers()
	return nil
}

func (a *Attach) takeBoth(ports []object.Port) ([]object.Port, netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	ports, err := a.ports.Take(ports)
	if err != nil {
		return nil, netip.Addr{}, err
	}
	addr, err := a.pool.Take(time.Now())
	if err != nil {
		a.ports.Release(ports)
	}
	return ports, addr, err
}

func shortID(id string) string { return id[:min(12, len(id))] }

func (a *Attach) unreserve(r *record) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pool.Release(r.address(), time.Now())
	a.ports.Release(r.Made.Ports)
}

// build makes the namespace and the pair of devices, and keeps the record.
func (a *Attach) build(r *record) error {
	if err := link.Remove(r.Made.Namespace); err != nil {
		return err
	}
	v := link.Veth{
		Name: r.Made.Interface, Bridge: a.bridge.Name, Hairpin: filtersBridges(),
		Peer: r.inside(), Address: netip.PrefixFrom(r.address(), a.bridge.Subnet.Bits()),
		Gateway: a.bridge.Gateway, MAC: ipam.MAC(r.address()), MTU: a.bridge.MTU,
	}
	if err := link.Create(r.Made.Namespace, func() error { return a.link.Plug(v) }); err != nil {
		return err
	}
	a.saveNext()
	if err := a.keep(r); err != nil {
		return errors.Join(err, a.link.Remove(v.Name), link.Remove(r.Made.Namespace))
	}
	return nil
}

// keep makes the endpoint known, here and on disk.
func (a *Attach) keep(r *record) error {
	if err := a.disk.save(r); err != nil {
		return fmt.Errorf("save attachment: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ends[r.Asked.ID] = r
	return nil
}

// forgetStale lets UDP senders that were there before the port was reach it.
func (a *Attach) forgetStale(r *record) error {
	for _, p := range r.Made.Ports {
		if p.Protocol != network.UDP {
			continue
		}
		if err := a.link.ForgetPort(p.Host); err != nil {
			return err
		}
	}
	return nil
}

// filtersBridges reports whether the kernel shows bridged frames to the packet filter.
func filtersBridges() bool {
	b, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// Disconnect removes an endpoint and ends its connections. One that is not
// there is no error.
func (a *Attach) Disconnect(ctx context.Context, id string) error {
	done, err := a.begin(ctx, id)
	if err != nil {
		return err
	}
	defer done()
	a.mu.Lock()
	r := a.ends[id]
	a.mu.Unlock()
	if r == nil {
		return nil
	}
	return a.disconnect(ctx, r)
}

// disconnect takes the endpoint out of the rules, then out of the kernel. The
// record goes first: from then on the next process would sweep away what is
// left. What fails on the way is tried again by the next call.
func (a *Attach) disconnect(ctx context.Context, r *record) error {
	id := r.Asked.ID
	a.mu.Lock()
	delete(a.ends, id)
	a.mu.Unlock()
	err := a.dismantle(ctx, r)
	if err != nil {
		a.mu.Lock()
		a.ends[id] = r
		a.mu.Unlock()
		return fmt.Errorf("disconnect %s: %w", shortID(id), err)
	}
	if r.address().IsValid() {
		a.unreserve(r)
	}
	return nil
}

func (a *Attach) dismantle(ctx context.Context, r *record) error {
	if err := a.disk.remove(r.Asked.ID); err != nil {
		return err
	}
	if len(r.Made.Ports) > 0 {
		if err := a.publish(ctx); err != nil {
			return err
		}
	}
	if r.address().IsValid() {
		if err := a.unplug(ctx, r); err != nil {
			return err
		}
	}
	if r.Made.Namespace != "" {
		return link.Remove(r.Made.Namespace)
	}
	return nil
}

// Retain disconnects every endpoint but these.
func (a *Attach) Retain(ctx context.Context, ids []string) error {
	a.mu.Lock()
	var others []string
	for id := range a.ends {
		if !slices.Contains(ids, id) {
			others = append(others, id)
		}
	}
	a.mu.Unlock()
	errs := make([]error, len(others))
	var g errgroup.Group
	g.SetLimit(together)
	for i, id := range others {
		g.Go(func() error {
			errs[i] = a.Disconnect(ctx, id)
			return nil // the others are tried all the same
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}

// together is how many endpoints Retain disconnects at once.
const together = 32
