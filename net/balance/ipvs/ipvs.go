// SPDX-License-Identifier: Apache-2.0

// Package ipvs speaks to IPVS, the kernel's balancer of connections, in one
// network namespace, by generic netlink.
//
// A [Service] is a value, with its destinations; [Plan] is pure and says which
// commands make the kernel's services those that are wanted, and [Conn.Run]
// gives them. It covers what Skep uses: translation of addresses (masquerading),
// and services by address and port or by the mark of packets.
package ipvs

import (
	"cmp"
	"net/netip"
	"slices"
)

// Service is what clients connect to, and who serves it.
type Service struct {
	// Mark is that of the packets which come to the service, if it is not zero;
	// of the Address, only the family counts then, and the rest is zero.
	Mark     uint32
	Address  netip.Addr
	Protocol uint8
	Port     uint16
	// Tag is a number that the kernel keeps and does not use: it is the time of
	// services that are persistent, which ours are not. It must be below 2^21.
	Tag          uint32
	Destinations []Destination
}

// Destination serves a service.
type Destination struct {
	Address netip.Addr
	Port    uint16 // 0 for that which was asked for, with Mark only
	// Weight is 0 for one that gets no new connections.
	Weight uint32
	// Connections are those that the kernel knows, open or not long closed; only
	// what is read has them.
	Connections uint32
}

// id is what the kernel knows a service by.
type id struct {
	mark     uint32
	address  netip.Addr
	protocol uint8
	port     uint16
}

func (s Service) id() id {
	a := s.Address
	if s.Mark != 0 {
		a = netip.IPv4Unspecified()
		if s.Address.Is6() {
			a = netip.IPv6Unspecified()
		}
	}
	return id{s.Mark, a, s.Protocol, s.Port}
}

// Same reports whether both are the same service to the kernel, which has one
// of them at most.
func (s Service) Same(o Service) bool { return s.id() == o.id() }

func (s Service) compare(o Service) int {
	return cmp.Or(cmp.Compare(s.Mark, o.Mark), s.Address.Compare(o.Address),
		cmp.Compare(s.Port, o.Port), cmp.Compare(s.Protocol, o.Protocol))
}

func (d Destination) compare(o Destination) int {
	return cmp.Or(d.Address.Compare(o.Address), cmp.Compare(d.Port, o.Port))
}

// sorted are services, and their destinations, in order.
func sorted(services []Service) []Service {
	services = slices.SortedFunc(slices.Values(services), Service.compare)
	for i := range services {
		services[i].Destinations = slices.SortedFunc(slices.Values(services[i].Destinations), Destination.compare)
	}
	return services
}
