// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"skep/net/balance/ipvs"
	"skep/net/link"
)

// virtual balances by IPVS, the kernel's virtual servers.
type virtual struct {
	config Config
	conn   *ipvs.Conn
	// beside is nil where the kernel has no packet filter for it.
	beside *filter
	// now is what the kernel has of ours; known is false until it was read once.
	now   []ipvs.Service
	known bool
	// marks are those of what was last set.
	marks map[key]uint32
}

func openVirtual(c Config) (*virtual, error) {
	conn, err := ipvs.Open()
	if err != nil {
		return nil, err
	}
	v := &virtual{config: c, conn: conn}
	if err = errors.Join(settings(c.Where), conn.SetTimeouts(timeouts())); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	if noBeside() == nil {
		if v.beside, err = openFilter(c); err != nil {
			return nil, errors.Join(err, conn.Close())
		}
	}
	return v, nil
}

// timeouts are IPVS's own but for idle connections of TCP, which it forgets
// after 15 minutes otherwise: sooner than any program sends its probes.
func timeouts() ipvs.Timeouts {
	return ipvs.Timeouts{TCP: 2 * time.Hour, FIN: 2 * time.Minute, UDP: 5 * time.Minute}
}

// settings are the sysctls of the namespace. It must be entered, and IPVS be there.
func settings(where Where) error {
	// A packet in the middle of a connection that IPVS does not know any more is
	// answered with a reset: by this machine, if it is the service's address, else
	// by a backend that does not know it either.
	sloppy := "1"
	if where == Forwarded {
		sloppy = "0"
	}
	for _, s := range []struct{ name, value string }{
		{"conntrack", "1"},                 // what is translated can be masqueraded, counted and forgotten
		{"conn_reuse_mode", "1"},           // a client's port that is used again is a new connection
		{"expire_nodest_conn", "1"},        // who is removed is not sent anything more
		{"expire_quiescent_template", "1"}, // nor is anybody stuck to it
		{"sloppy_tcp", sloppy},
	} {
		if err := link.Sysctl("net/ipv4/vs/"+s.name, s.value); err != nil {
			return err
		}
	}
	return nil
}

// tag marks services as this balancer's.
func (v *virtual) tag() uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(v.config.Table))
	return 1<<20 | h.Sum32()&0xffff
}

// read lists our services in the kernel.
func (v *virtual) read() ([]ipvs.Service, error) {
	all, err := v.conn.Services()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s ipvs.Service) bool { return s.Tag != v.tag() }), nil
}

func (v *virtual) left() ([]key, error) {
	have, err := v.read()
	if err != nil {
		return nil, err
	}
	var keys []key
	if v.beside != nil {
		if keys, err = v.beside.left(); err != nil {
			return nil, err
		}
	}
	for _, s := range have {
		if s.Mark == 0 {
			keys = append(keys, key{s.Address, s.Protocol, s.Port})
		}
	}
	return keys, nil
}

func (v *virtual) set(ctx context.Context, services []service) error {
	if err := v.possible(services); err != nil {
		return err
	}
	if !v.known {
		have, err := v.read()
		if err != nil {
			return err
		}
		v.now = have
	}
	by := marks(services)
	next := virtualServices(services, by, v.tag())
	more, less := ipvs.Plan(v.now, next)
	shuffle(more)
	v.known = false
	if err := v.conn.Run(more); err != nil {
		return err
	}
	// Nothing is marked before there is someone to take it, nor let pass; and
	// it is dropped before nobody is left who would.
	if err := v.setBeside(ctx, services); err != nil {
		return err
	}
	if err := v.conn.Run(less); err != nil {
		return err
	}
	v.now, v.marks, v.known = next, by, true
	return nil
}

// possible is an error for services that IPVS cannot serve.
func (v *virtual) possible(services []service) error {
	var errs []error
	for _, s := range services {
		switch {
		case s.key.address.IsUnspecified():
			errs = append(errs, fmt.Errorf("service %s: IPVS balances no port of any address", s.key))
		case s.key.port == 0 && v.beside == nil:
			errs = append(errs, fmt.Errorf("service %s: for all ports IPVS needs the packet filter, which this kernel has not: %w", s.key, noBeside()))
		}
	}
	return errors.Join(errs...)
}

func (v *virtual) setBeside(ctx context.Context, services []service) error {
	if v.beside == nil {
		return nil
	}
	return v.beside.hold(ctx, planBeside(v.config, services))
}

// virtualServices is the services as IPVS has them.
func virtualServices(services []service, by map[key]uint32, tag uint32) []ipvs.Service {
	out := make([]ipvs.Service, 0, len(services))
	for _, s := range services {
		v := ipvs.Service{Address: s.key.address, Protocol: s.key.proto, Port: s.key.port, Tag: tag}
		if m := by[s.key]; m != 0 {
			v = ipvs.Service{Mark: m, Address: netip.IPv4Unspecified(), Tag: tag}
			if s.key.address.Is6() {
				v.Address = netip.IPv6Unspecified()
			}
		}
		for _, t := range s.live {
			v.Destinations = append(v.Destinations, ipvs.Destination{Address: t.Address, Port: t.Port, Weight: 1})
		}
		for _, t := range s.draining {
			if !slices.Contains(s.live, t) {
				v.Destinations = append(v.Destinations, ipvs.Destination{Address: t.Address, Port: t.Port})
			}
		}
		out = append(out, v)
	}
	return out
}

// shuffle changes the order in which destinations are added, in which they then
// take turns: else the first connection of every namespace would be the same one's.
func shuffle(commands []ipvs.Command) {
	adds := func(c ipvs.Command) bool { return c.Verb == ipvs.AddDestination }
	for i := 0; i < len(commands); {
		n := i
		for n < len(commands) && adds(commands[n]) {
			n++
		}
		some := commands[i:n]
		rand.Shuffle(len(some), func(x, y int) { some[x], some[y] = some[y], some[x] })
		i = n + 1
	}
}

func (v *virtual) check(ctx context.Context) (int, error) {
	if !v.known {
		return 0, nil
	}
	if err := settings(v.config.Where); err != nil {
		return 0, err
	}
	repaired, err := v.mendTimeouts()
	if err != nil {
		return 0, err
	}
	wrong, err := v.wrong()
	if err != nil {
		return 0, err
	}
	if err = v.conn.Run(wrong); err != nil {
		return 0, err
	}
	repaired += len(wrong)
	if v.beside == nil {
		return repaired, nil
	}
	n, err := v.beside.check(ctx)
	return repaired + n, err
}

// wrong is what it takes to make the kernel have what was last set.
func (v *virtual) wrong() ([]ipvs.Command, error) {
	have, err := v.conn.Services()
	if err != nil {
		return nil, err
	}
	// Somebody else's service is no business of ours, unless it is in our place.
	have = slices.DeleteFunc(have, func(s ipvs.Service) bool {
		return s.Tag != v.tag() && !slices.ContainsFunc(v.now, s.Same)
	})
	more, less := ipvs.Plan(have, v.now)
	return append(more, less...), nil
}

func (v *virtual) differs() (int, error) {
	if !v.known {
		return 1, nil // the last set was interrupted
	}
	have, err := v.conn.Timeouts()
	if err != nil {
		return 0, err
	}
	wrong, err := v.wrong()
	n := len(wrong)
	if have != timeouts() {
		n++
	}
	if err != nil || v.beside == nil {
		return n, err
	}
	beside, err := v.beside.differs()
	return n + beside, err
}

func (v *virtual) mendTimeouts() (int, error) {
	have, err := v.conn.Timeouts()
	if err != nil || have == timeouts() {
		return 0, err
	}
	return 1, v.conn.SetTimeouts(timeouts())
}

func (v *virtual) destroy() error {
	have, err := v.read()
	if err != nil {
		return err
	}
	_, all := ipvs.Plan(have, nil)
	if err := v.conn.Run(all); err != nil {
		return err
	}
	v.known, v.now = false, nil
	if v.beside == nil {
		return nil
	}
	return v.beside.destroy()
}

func (v *virtual) close() error {
	err := v.conn.Close()
	if v.beside == nil {
		return err
	}
	return errors.Join(err, v.beside.close())
}

// tryVirtual is why this kernel has no IPVS, if it has not.
func tryVirtual() error {
	conn, err := ipvs.Open()
	if err != nil {
		return err
	}
	a := netip.IPv4Unspecified().Next()
	more, _ := ipvs.Plan(nil, []ipvs.Service{{Address: a, Protocol: unix.IPPROTO_TCP, Port: 1}})
	return errors.Join(conn.Run(more), conn.Close())
}
