// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/nft"
	"skep/store/object"
)

// Attachment is a container's place on a network.
type Attachment struct {
	ID        string // of the container
	Network   string
	Namespace string // where the container's namespace is pinned
	Interface string // the device's name there
	Addresses []netip.Prefix
	MAC       net.HardwareAddr
}

// end is an attachment as it was made.
type end struct {
	Attachment
	// Port is the device's name in the network's namespace.
	Port string
	// Inode tells the container's namespace from one that has its path later.
	Inode uint64

	chain nft.Chain // what the port may send
}

func newEnd(a Attachment) end {
	e := end{Attachment: a, Port: portName(a.ID, a.Network)}
	e.Addresses = slices.Clone(a.Addresses)
	e.Inode = inode(a.Namespace)
	e.chain = planChain(e.Port, e.MAC, e.Addresses)
	return e
}

func inode(path string) uint64 {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0
	}
	return st.Ino
}

func (a Attachment) equal(b Attachment) bool {
	return a.ID == b.ID && a.Network == b.Network && a.Namespace == b.Namespace && a.Interface == b.Interface &&
		slices.Equal(a.Addresses, b.Addresses) && bytes.Equal(a.MAC, b.MAC)
}

func (a Attachment) check() error {
	switch {
	case a.ID == "":
		return errors.New("the container's ID is missing")
	case len(a.MAC) != len(link.MAC{}):
		return fmt.Errorf("MAC %q: not six bytes", a.MAC)
	case a.Interface == "" || len(a.Interface) >= unix.IFNAMSIZ:
		return fmt.Errorf("device name %q: not from 1 to %d bytes", a.Interface, unix.IFNAMSIZ-1)
	case len(a.Addresses) == 0:
		return errors.New("there is no address")
	}
	return nil
}

// Attach connects a container to a network that has been set. When it returns
// packets pass. For one that is connected in the same way it is a question; one
// that is connected differently is connected anew.
func (o *Overlay) Attach(ctx context.Context, a Attachment) error {
	if err := a.check(); err != nil {
		return fmt.Errorf("attach to network %s: %w", a.Network, err)
	}
	s, err := o.begin(ctx, a.Network)
	if err != nil {
		return err
	}
	if s == nil {
		return object.Errorf(errdefs.ErrNotFound, "network %s is not on this node", a.Network)
	}
	defer s.release()
	if err := o.attach(ctx, s, newEnd(a)); err != nil {
		return fmt.Errorf("attach to network %s: %w", a.Network, err)
	}
	return nil
}

func (o *Overlay) attach(ctx context.Context, s *segment, e end) error {
	if s.dirty {
		if _, _, err := o.converge(ctx, s); s.dirty {
			return err
		}
	}
	if old, ok := o.find(e.ID, e.Network); ok {
		if old.equal(e.Attachment) && old.Inode == e.Inode {
			if _, there, err := s.link.Device(old.Port); there || err != nil {
				return err
			}
		}
		if err := o.detach(s, old); err != nil {
			return err
		}
	}
	if !link.Pinned(e.Namespace) {
		return fmt.Errorf("there is no network namespace at %s", e.Namespace)
	}
	ends := o.endsOf(s.id)
	if slices.ContainsFunc(ends, func(other end) bool { return other.Port == e.Port }) {
		return fmt.Errorf("port %s is another container's", e.Port)
	}
	if err := o.plug(s, ends, e); err != nil {
		s.dirty = true
		return err
	}
	return nil
}

// plug makes the table ready, then the pair of devices, then lets others find
// it, then keeps the record: what has none is swept away by the next process.
func (o *Overlay) plug(s *segment, ends []end, e end) error {
	all := append(slices.Clone(ends), e)
	if err := s.filter(planTable(sorted(all), o.table)); err != nil {
		return err
	}
	err := o.join(s, e)
	if err == nil {
		err = s.tell(ends, all, e)
	}
	if err == nil {
		err = o.disk.saveEnd(e)
	}
	if err != nil {
		return errors.Join(err, s.link.Remove(e.Port))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ends[e.ID] == nil {
		o.ends[e.ID] = map[string]end{}
	}
	o.ends[e.ID][e.Network] = e
	return nil
}

// filter makes the table of who may send what the one planned.
func (s *segment) filter(next nft.Table) error {
	if err := s.nft.Apply(s.table, next); err != nil {
		// Somebody may have changed it: then it is made anew.
		if again := s.nft.Replace(next); again != nil {
			return errors.Join(err, again)
		}
	}
	s.table = next
	return nil
}

// tell changes the tables of who is where after some came or went.
func (s *segment) tell(before, after []end, moved ...end) error {
	k := newKeys()
	k.addEnds(moved)
	now, _ := planOnly(s.net, before, k)
	next, _ := planOnly(s.net, after, k) // who is refused has been told of by Set
	return s.change(k, now, next)
}

// change programs what is different of the keys.
func (s *segment) change(k keys, now, next who) error {
	set, drop := now.change(next)
	if err := s.program(set, drop, s.onHost(set), s.onHost(drop)); err != nil {
		return err
	}
	if s.whole {
		s.who.replace(k, next)
	}
	return nil
}
