package dataplane

import (
	"net/netip"
	"slices"

	"skep/appliance/wire"
	"skep/net/balance"
	"skep/net/dns"
)

// services are the addresses of a network's services and who serves them.
func services(m *wire.NetworkMembers, by map[string][]takes) []balance.Service {
	var list []balance.Service
	for _, s := range byID(m.Services) {
		for _, vip := range s.VIPs {
			list = append(list, balance.Service{Address: vip, Backends: backends(vip, by[s.ID])})
		}
	}
	return list
}

func backends(vip netip.Addr, endpoints []takes) []balance.Backend {
	var list []balance.Backend
	for _, e := range endpoints {
		if a, ok := sameFamily(vip, e.Addresses); ok && e.part != absent {
			list = append(list, balance.Backend{Address: a, Draining: e.part == draining})
		}
	}
	return list
}

func sameFamily(as netip.Addr, list []netip.Addr) (netip.Addr, bool) {
	i := slices.IndexFunc(list, func(a netip.Addr) bool { return a.Is4() == as.Is4() })
	if i < 0 {
		return netip.Addr{}, false
	}
	return list[i], true
}

// names are what a network's containers are answered.
func names(m *wire.NetworkMembers, by map[string][]takes) *dns.Network {
	n := &dns.Network{ID: m.ID, Name: m.Name}
	for _, s := range m.Subnets {
		n.Subnets = append(n.Subnets, s.Prefix)
	}
	for _, s := range byID(m.Services) {
		n.Services = append(n.Services, dns.Service{ID: s.ID, Name: s.Name, VIPs: s.VIPs})
	}
	part := map[string]part{}
	for _, list := range by {
		for _, e := range list {
			part[e.ID] = e.part
		}
	}
	for _, e := range byID(m.Endpoints) {
		n.Endpoints = append(n.Endpoints, dns.Endpoint{
			Service: e.Service, Active: part[e.ID] == active,
			Names: e.Names, Aliases: e.Aliases, Addresses: e.Addresses,
		})
	}
	return n
}
