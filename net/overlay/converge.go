// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"skep/net/link"
)

// converge makes a network's namespace what it is to be, whatever it is. It
// returns how many things were not right, and what they were in words. The
// caller has the turn.
func (o *Overlay) converge(ctx context.Context, s *segment) (mended int, words []string, err error) {
	s.dirty = true
	if s.link == nil || !link.Pinned(s.path) {
		if err = o.makeNamespace(s); err != nil {
			return 0, nil, err
		}
		mended, words = 1, []string{"the namespace is missing"}
	}
	ends := o.endsOf(s.id)
	want := planLayout(s.net, ends, o.table)
	people, refused := planWho(s.net, ends)
	have, err := s.observe(o.table, ends)
	if err != nil {
		return mended, words, err
	}
	d := compare(want, people, s.whole, have)
	if err := link.Within(s.path, s.settings); err != nil {
		return mended, words, err
	}
	if err := o.apply(ctx, s, want, d); err != nil {
		return mended, append(words, d.words...), err
	}
	s.table, s.who, s.dirty = want.table, who{}, false
	if s.whole {
		s.who = people
	}
	return mended + d.size(), append(words, d.words...), refused
}

// makeNamespace makes it, without any device.
func (o *Overlay) makeNamespace(s *segment) error {
	if err := s.raze(); err != nil {
		return err
	}
	err := link.Create(s.path, func() error {
		return errors.Join(link.Loopback(), s.settings(), s.connect())
	})
	if err != nil {
		return errors.Join(err, s.close())
	}
	return nil
}

// apply does what is to be done. Every step fits what an earlier run that was
// cut off left. The table comes before the ports: no frame passes unseen.
func (o *Overlay) apply(ctx context.Context, s *segment, want layout, d difference) error {
	if err := s.link.Remove(d.remove...); err != nil {
		return err
	}
	if d.makeBridge {
		if err := s.link.AddBridge(bridgeName, want.bridge.MAC, want.bridge.MTU); err != nil {
			return err
		}
	}
	if d.bridge {
		if err := s.setBridge(want); err != nil {
			return err
		}
	}
	if d.makeTunnel {
		if err := o.addTunnel(ctx, s, want.tunnel); err != nil {
			return err
		}
	}
	if d.tunnel {
		if err := o.setTunnel(s, want); err != nil {
			return err
		}
	}
	if d.table {
		if err := s.nft.Replace(want.table); err != nil {
			return err
		}
	}
	if err := o.applyPorts(s, d); err != nil {
		return err
	}
	return s.program(d.set, d.drop, d.hostSet, d.hostDrop)
}

func (s *segment) setBridge(want layout) error {
	br, err := s.device(bridgeName)
	if err != nil {
		return err
	}
	if err := s.link.SetMTU(br, want.bridge.MTU); err != nil {
		return err
	}
	if err := s.link.SetMAC(br, want.bridge.MAC); err != nil {
		return err
	}
	return link.Within(s.path, func() error {
		if err := bridgeSettings(); err != nil {
			return err
		}
		return s.link.SetHost(br, want.bridge.MAC, want.host)
	})
}

// takenPatience is how long the kernel may need to be done with a device of a
// process that was killed while it made it.
const takenPatience = 2 * time.Second

func (o *Overlay) addTunnel(ctx context.Context, s *segment, v link.Vxlan) error {
	enough := time.After(takenPatience)
	for {
		err := o.host.AddVxlan(v, s.path)
		if !errors.Is(err, link.ErrTaken) {
			s.clashed = false
			return err
		}
		if s.clashed {
			return err // it has been waited for before
		}
		select {
		case <-time.After(takenPatience / 100):
		case <-enough:
			s.clashed = true
			return err
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (o *Overlay) setTunnel(s *segment, want layout) error {
	t, err := s.device(tunnelName)
	if err != nil {
		return err
	}
	if err = s.link.SetMTU(t, want.tunnel.MTU); err != nil {
		return err
	}
	err = link.Within(s.path, func() error {
		if o.software {
			if sum := link.SoftwareChecksums(tunnelName); sum != nil {
				return sum
			}
		}
		// It must, to answer for neighbours of IPv6.
		return optional(link.SpeakIPv6(tunnelName, true))
	})
	if err != nil {
		return err
	}
	if err = s.link.Enslave(tunnelName, bridgeName); err != nil {
		return err
	}
	if err = s.link.Treat(t, tunnelTreatment()); err != nil {
		return err
	}
	err = s.link.SetUp(t)
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("UDP port %d is another program's: %w", want.tunnel.Port, err)
	}
	return err
}

// applyPorts tries all: one container's namespace that ends meanwhile is no
// reason to leave others alone.
func (o *Overlay) applyPorts(s *segment, d difference) error {
	var errs []error
	for _, e := range d.join {
		errs = append(errs, o.join(s, e))
	}
	for _, e := range d.settle {
		p, err := s.device(e.Port)
		if err == nil {
			err = s.link.Enslave(e.Port, bridgeName)
		}
		if err == nil {
			err = s.link.SetMTU(p, s.net.MTU)
		}
		if err == nil {
			err = link.Within(e.Namespace, func() error { return link.SetMTU(e.Interface, s.net.MTU) })
		}
		if err == nil {
			err = s.link.EnsurePort(e.Port, e.MAC)
		}
		if err != nil {
			err = fmt.Errorf("set up port %s of %s: %w", e.Port, e.ID, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// join makes a container's pair of devices.
func (o *Overlay) join(s *segment, e end) error {
	err := s.link.Join(link.Pair{
		Name: e.Port, Bridge: bridgeName, Peer: e.Interface, MAC: e.MAC, MTU: s.net.MTU,
		Addresses: e.Addresses, SoftwareChecksums: o.software,
	}, e.Namespace)
	if err != nil {
		return errors.Join(fmt.Errorf("connect %s: %w", e.ID, err), s.link.Remove(e.Port))
	}
	return nil
}

// program changes the tables of who is where.
func (s *segment) program(set, drop, hostSet, hostDrop []link.Entry) error {
	if len(set)+len(drop) > 0 {
		t, err := s.device(tunnelName)
		if err != nil {
			return err
		}
		if err := s.link.Program(t.Index, set, drop); err != nil {
			return err
		}
	}
	if len(hostSet)+len(hostDrop) > 0 {
		br, err := s.device(bridgeName)
		if err != nil {
			return err
		}
		return s.link.Program(br.Index, hostSet, hostDrop)
	}
	return nil
}

func (s *segment) device(name string) (link.Device, error) {
	d, ok, err := s.link.Device(name)
	if err == nil && !ok {
		err = fmt.Errorf("%s is missing", name)
	}
	return d, err
}
