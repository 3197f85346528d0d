package wire

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"

	"skep/store/object"
)

// Encoded is the item with its encoding, made once for all messages that it goes
// into; what it points to must not be changed any more. The error says why a
// [View] would refuse it.
func (i NetworkItem) Encoded() (NetworkItem, error) {
	if err := i.check(); err != nil {
		return i, err
	}
	b, err := i.MarshalCBOR()
	if err != nil {
		return i, fmt.Errorf("encode network item: %w", err)
	}
	if len(b) > maxItem {
		return i, fmt.Errorf("network item of %d bytes: %w", len(b), ErrTooLarge)
	}
	i.encoded = b
	return i, nil
}

// MarshalCBOR implements [cbor.Marshaler].
func (i NetworkItem) MarshalCBOR() ([]byte, error) {
	if i.encoded != nil {
		return i.encoded, nil
	}
	type plain NetworkItem
	return object.Encode(plain(i))
}

// Size is how many bytes an item that is [NetworkItem.Encoded] takes in a frame.
func (i NetworkItem) Size() int { return len(i.encoded) }

// Same reports whether two items that are [NetworkItem.Encoded] say the same.
func (i NetworkItem) Same(other NetworkItem) bool { return bytes.Equal(i.encoded, other.encoded) }

// Parts cuts a set into messages whose frames are small enough. Its items are
// [NetworkItem.Encoded].
func (n *Networks) Parts() []*Networks {
	const room = MaxFrame - 4096
	var parts []*Networks
	from, size := 0, 0
	cut := func(to int, more bool) {
		parts = append(parts, &Networks{Complete: n.Complete, More: more, Version: n.Version, Items: n.Items[from:to:to]})
	}
	for i := range n.Items {
		if size += n.Items[i].Size(); size > room || i-from == maxItems {
			cut(i, true)
			from, size = i, n.Items[i].Size()
		}
	}
	cut(len(n.Items), false)
	return parts
}

const (
	// maxItem is how large an item may be: many go into a frame.
	maxItem = 64 << 10
	// maxItems is how many items a message may have: decoding allows 65536.
	maxItems = 1 << 15
)

// check refuses what no manager says.
func (i *NetworkItem) check() error {
	set := 0
	for _, there := range []bool{i.Network != nil, i.Service != nil, i.Endpoint != nil, i.Host != nil} {
		if there {
			set++
		}
	}
	if set != 1 {
		return errors.New("item is not exactly one thing")
	}
	switch {
	case i.Network != nil:
		return i.Network.check(i.Gone)
	case i.Service != nil:
		return i.Service.check(i.Gone)
	case i.Endpoint != nil:
		return i.Endpoint.check(i.Gone)
	default:
		return i.Host.check(i.Gone)
	}
}

// maxVNI is the largest number that a frame between nodes can carry.
const maxVNI = 1<<24 - 1

func (n *Network) check(gone bool) error {
	switch {
	case n.ID == "":
		return errors.New("network has no ID")
	case gone:
		return only(n, &Network{ID: n.ID})
	case n.VNI == 0 || n.VNI > maxVNI || n.MTU < 0 || n.MTU > 1<<16:
		return fmt.Errorf("network %q: VNI %d or MTU %d is out of range", n.ID, n.VNI, n.MTU)
	}
	for _, s := range n.Subnets {
		if !s.Prefix.IsValid() || s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway) {
			return fmt.Errorf("network %q: subnet %v with gateway %v", n.ID, s.Prefix, s.Gateway)
		}
	}
	return nil
}

func (s *NetworkService) check(gone bool) error {
	switch {
	case s.Network == "" || s.ID == "":
		return errors.New("service on a network has no ID")
	case gone:
		return only(s, &NetworkService{Network: s.Network, ID: s.ID})
	case slices.ContainsFunc(s.VIPs, invalid):
		return fmt.Errorf("service %q: VIPs %v", s.ID, s.VIPs)
	case s.Source != "" && s.Source != object.SourcePreserve && s.Source != object.SourceSNAT:
		return fmt.Errorf("service %q: source %q", s.ID, s.Source)
	}
	return nil
}

func (e *Endpoint) check(gone bool) error {
	switch {
	case e.Network == "" || e.ID == "":
		return errors.New("endpoint has no ID")
	case gone:
		return only(e, &Endpoint{Network: e.Network, ID: e.ID})
	case len(e.Addresses) == 0 || slices.ContainsFunc(e.Addresses, invalid):
		return fmt.Errorf("endpoint %q: addresses %v", e.ID, e.Addresses)
	case e.State != EndpointPrepared && e.State != EndpointActive && e.State != EndpointDraining:
		return fmt.Errorf("endpoint %q: state %q", e.ID, e.State)
	}
	return nil
}

func (h *Host) check(gone bool) error {
	switch {
	case h.ID == "":
		return errors.New("host has no ID")
	case gone:
		return only(h, &Host{ID: h.ID})
	case h.Slot < 0 || h.Slot > MaxSlot || h.Address.IsValid() && invalid(h.Address):
		return fmt.Errorf("host %q: slot %d, address %v", h.ID, h.Slot, h.Address)
	}
	return nil
}

// only refuses what says more of a thing that is gone than its key.
func only(what, key any) error {
	if !reflect.DeepEqual(what, key) {
		return errors.New("more than the key of what is gone")
	}
	return nil
}

func invalid(a netip.Addr) bool {
	return !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || a.Is4In6()
}
