// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"skep/net/ingress"
	"skep/net/link"
	"skep/net/nft"
)

// recover makes the kernel and the reservations fit the records found.
func (a *Attach) recover(ctx context.Context, found []*record) error {
	for _, r := range found {
		if err := a.readopt(ctx, r); err != nil {
			return err
		}
	}
	if err := a.sweep(); err != nil {
		return err
	}
	f := <-a.filter
	defer func() { a.filter <- f }()
	others, err := f.conn.Dropping(nft.Forward)
	if err != nil {
		return err
	}
	if len(others) > 0 {
		a.log.WarnContext(ctx, "found a firewall that drops what it forwards; it must let the bridge pass", "chains", others, "bridge", a.bridge.Name)
	}
	next := ingress.Plan(a.local, a.endpoints())
	if err := f.conn.Replace(next); err != nil {
		return err
	}
	f.now = next
	return nil
}

// readopt takes an endpoint's reservations again.
func (a *Attach) readopt(ctx context.Context, r *record) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if addr := r.address(); addr.IsValid() {
		if err := a.pool.Claim(addr); err != nil {
			return err
		}
		if err := a.link.Enslave(r.Made.Interface, a.bridge.Name); err != nil {
			a.log.WarnContext(ctx, "found an attachment without its link", "container", r.Asked.ID, "err", err)
		}
	}
	if err := a.ports.Retake(r.Made.Ports); err != nil {
		// Its rules still lead the port to it: nothing is lost but the reservation.
		a.log.WarnContext(ctx, "found another program on a published port", "container", r.Asked.ID, "err", err)
	}
	a.ends[r.Asked.ID] = r
	return nil
}

// sweep removes what a process left that died while it connected or disconnected.
func (a *Attach) sweep() error {
	used := map[string]bool{}
	for id, r := range a.ends {
		used[r.Made.Interface] = true
		used[id] = true
	}
	names, err := a.link.Names("v" + a.scope)
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return used[n] })
	var addrs []netip.Addr
	for _, n := range names {
		if addr, ok := a.deviceAddress(n); ok {
			addrs = append(addrs, addr)
		}
	}
	if err = errors.Join(a.link.Remove(names...), a.link.Forget(addrs...)); err != nil {
		return err
	}
	entries, err := os.ReadDir(a.disk.namespaces)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !used[e.Name()] {
			if err := link.Remove(a.disk.namespace(e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Run mends what others break: a firewall's restart empties the packet filter,
// a network manager removes a bridge that it does not know.
func (a *Attach) Run(ctx context.Context) error {
	t := time.NewTicker(converge)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := a.Converge(ctx); err != nil && ctx.Err() == nil {
				a.log.WarnContext(ctx, "did not mend the networks", "err", err)
			}
		}
	}
}

// Converge looks once and mends.
func (a *Attach) Converge(ctx context.Context) error {
	return errors.Join(a.mendBridge(ctx), a.mendFilter(ctx))
}

func (a *Attach) mendBridge(ctx context.Context) error {
	made, err := a.bridge.Ensure()
	if err != nil || !made {
		return err
	}
	a.log.WarnContext(ctx, "made the bridge anew")
	a.mu.Lock()
	var devices []string
	for _, r := range a.ends {
		if r.address().IsValid() {
			devices = append(devices, r.Made.Interface)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, d := range devices {
		errs = append(errs, a.link.Enslave(d, a.bridge.Name))
	}
	return errors.Join(errs...)
}

func (a *Attach) mendFilter(ctx context.Context) error {
	f, err := a.takeFilter(ctx)
	if err != nil {
		return err
	}
	defer func() { a.filter <- f }()
	generation, err := f.conn.Generation()
	if err != nil || generation == f.checked {
		return err
	}
	have, ok, err := f.conn.Read(nft.IPv4, a.local.Table)
	if err != nil {
		return err
	}
	want := ingress.Plan(a.local, a.endpoints())
	if !ok || have.String() != want.String() {
		a.log.WarnContext(ctx, "replaced packet filter table", "missing", !ok)
		if err := f.conn.Replace(want); err != nil {
			return err
		}
		f.now = want
		return nil // the generation has changed: read again next time
	}
	f.now, f.checked = want, generation
	return nil
}
