// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"net/netip"
)

// unplugging is the removal of one endpoint's device and connections.
type unplugging struct {
	device  string
	address netip.Addr
	done    bool
	err     error
}

// unplug removes an endpoint's device and then ends its connections. Both take
// the kernel as long for many as for one: those who wait for their turn are
// served together by the first of them.
func (a *Attach) unplug(ctx context.Context, r *record) error {
	mine := &unplugging{device: r.Made.Interface, address: r.address()}
	a.mu.Lock()
	a.unplugs = append(a.unplugs, mine)
	a.mu.Unlock()
	select {
	case turn := <-a.unplugger:
		defer func() { a.unplugger <- turn }()
	case <-ctx.Done():
		return context.Cause(ctx) // whoever is next does it with theirs
	}
	a.mu.Lock()
	if mine.done {
		defer a.mu.Unlock()
		return mine.err
	}
	batch := a.unplugs
	a.unplugs = nil
	a.mu.Unlock()
	err := a.unplugAll(batch)
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range batch {
		u.done, u.err = true, err
	}
	return err
}

func (a *Attach) unplugAll(batch []*unplugging) error {
	var devices []string
	var addrs []netip.Addr
	for _, u := range batch {
		devices = append(devices, u.device)
		addrs = append(addrs, u.address)
	}
	return errors.Join(a.link.Remove(devices...), a.link.Forget(addrs...))
}
