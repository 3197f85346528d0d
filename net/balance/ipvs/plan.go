// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Verb is what a command does.
type Verb uint8

// The verbs, as the kernel numbers them.
const (
	AddService        Verb = 1
	DeleteService     Verb = 3
	AddDestination    Verb = 5
	ChangeDestination Verb = 6
	DeleteDestination Verb = 7
)

// Command is one change. A command for a service has no destination.
type Command struct {
	Verb        Verb
	Service     Service
	Destination Destination
}

// Plan lists the commands that make the services in the kernel those that are
// wanted. Each is carried out at once, so they are in an order in which a
// service always has someone: those of more come before those of less, which
// first say who is no longer given connections, and then who is removed.
func Plan(have, want []Service) (more, less []Command) {
	there := map[id]Service{}
	for _, s := range have {
		there[s.id()] = s
	}
	var p planner
	for _, s := range sorted(want) {
		old, ok := there[s.id()]
		delete(there, s.id())
		if ok && old.Tag != s.Tag {
			// Somebody else's in our place.
			p.add = append(p.add, Command{Verb: DeleteService, Service: bare(old)})
			ok, old = false, Service{}
		}
		if !ok {
			p.add = append(p.add, Command{Verb: AddService, Service: bare(s)})
		}
		p.destinations(s, old.Destinations)
	}
	for _, s := range sorted(have) {
		if _, gone := there[s.id()]; gone {
			p.remove = append(p.remove, Command{Verb: DeleteService, Service: bare(s)})
		}
	}
	return p.add, append(p.drain, p.remove...)
}

type planner struct{ add, drain, remove []Command }

func (p *planner) destinations(s Service, have []Destination) {
	there := map[netip.AddrPort]Destination{}
	for _, d := range have {
		there[netip.AddrPortFrom(d.Address, d.Port)] = d
	}
	for _, d := range s.Destinations {
		at := netip.AddrPortFrom(d.Address, d.Port)
		old, ok := there[at]
		delete(there, at)
		switch {
		case !ok:
			p.add = append(p.add, Command{AddDestination, bare(s), d})
		case old.Weight == d.Weight:
		case d.Weight == 0:
			p.drain = append(p.drain, Command{ChangeDestination, bare(s), d})
		default:
			p.add = append(p.add, Command{ChangeDestination, bare(s), d})
		}
	}
	for _, d := range have {
		if _, gone := there[netip.AddrPortFrom(d.Address, d.Port)]; gone {
			p.remove = append(p.remove, Command{DeleteDestination, bare(s), d})
		}
	}
}

func bare(s Service) Service {
	s.Destinations = nil
	return s
}

// String is the command in the manner of ipvsadm.
func (c Command) String() string {
	to := fmt.Sprintf(" -r %s", netip.AddrPortFrom(c.Destination.Address, c.Destination.Port))
	method := fmt.Sprintf(" -m -w %d", c.Destination.Weight)
	switch c.Verb {
	case AddService:
		return "-A " + c.Service.String() + " -s rr"
	case DeleteService:
		return "-D " + c.Service.String()
	case AddDestination:
		return "-a " + c.Service.String() + to + method
	case ChangeDestination:
		return "-e " + c.Service.String() + to + method
	case DeleteDestination:
		return "-d " + c.Service.String() + to
	}
	return fmt.Sprintf("command %d", c.Verb)
}

// String names the service in the manner of ipvsadm.
func (s Service) String() string {
	if s.Mark != 0 {
		text := fmt.Sprintf("-f %d", s.Mark)
		if s.Address.Is6() {
			text += " -6"
		}
		return text
	}
	flag := map[uint8]string{unix.IPPROTO_TCP: "-t", unix.IPPROTO_UDP: "-u", unix.IPPROTO_SCTP: "--sctp-service"}[s.Protocol]
	return fmt.Sprintf("%s %s", flag, netip.AddrPortFrom(s.Address, s.Port))
}
