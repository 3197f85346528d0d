package config

import (
	"fmt"
	"slices"
	"strconv"
)

// check finds values that are right by themselves but cannot be together.
func (d *decoder) check(c *Config) {
	d.checkSwarm(&c.Swarm)
	d.checkAdmin(&c.Admin)
	hosts := map[string]bool{}
	for i, r := range c.Registries {
		key := "registries[" + strconv.Itoa(i) + "]"
		if r.Host == "" && !d.has(key+".host") {
			d.add(d.nodes[key], key, "host is missing")
		}
		if r.Host != "" && hosts[r.Host] {
			d.add(d.nodes[key+".host"], key+".host", "%q is listed twice", r.Host)
		}
		if r.Insecure && r.CA != "" {
			d.add(d.nodes[key+".insecure"], key+".insecure", "given together with ca; want one of them")
		}
		hosts[r.Host] = true
	}
	d.checkInterfaces(c.Network.Interfaces)
}

func (d *decoder) checkSwarm(s *Swarm) {
	if s.Init != nil && s.Join != nil {
		d.add(d.nodes["swarm.join"], "swarm.join", "given together with swarm.init; want one of them")
	}
	if j := s.Join; j != nil {
		if j.Token == "" && !d.has("swarm.join.token") && !d.has("swarm.join.token_file") {
			d.add(d.nodes["swarm.join"], "swarm.join", "token_file is missing")
		}
		if d.count("swarm.join.managers") == 0 {
			d.add(d.nodes["swarm.join"], "swarm.join", "managers is missing; want at least one HOST:PORT")
		}
	}
	if s.Init == nil {
		return
	}
	for i, p := range s.Init.AddressPool {
		key := "swarm.init.address_pool[" + strconv.Itoa(i) + "]"
		if !p.Base.IsValid() {
			if !d.has(key + ".base") {
				d.add(d.nodes[key], key, "base is missing")
			}
			continue
		}
		if p.Size < p.Base.Bits() {
			d.add(d.nodes[key], key, "subnets of size %d do not fit in %s", p.Size, p.Base)
		}
		if first := s.Init.AddressPool[0].Size; p.Size != first {
			d.add(d.nodes[key], key, "subnets of size %d, those before of %d: a swarm's are all of one size", p.Size, first)
		}
		for _, q := range s.Init.AddressPool[:i] {
			if q.Base.IsValid() && q.Base.Overlaps(p.Base) {
				d.add(d.nodes[key], key, "%s overlaps %s", p.Base, q.Base)
			}
		}
	}
}

// count is the number of items in the list at key, right or wrong.
func (d *decoder) count(key string) int {
	if n := d.nodes[key]; n != nil {
		return len(n.Content)
	}
	return 0
}

func (d *decoder) checkAdmin(a *Admin) {
	if d.has("admin.listen") && d.count("admin.listen") == 0 {
		d.add(d.nodes["admin.listen"], "admin.listen", "is empty; want at least one address")
	}
	for _, l := range a.Listen {
		if l.Network == "tcp" && a.TLS.ClientCA == "" && !d.has("admin.tls.client_ca") {
			d.add(d.nodes["admin.listen"], "admin.listen",
				"tcp://%s without admin.tls.client_ca; tcp is served under mutual TLS only", l.Address)
		}
	}
	if (a.TLS.Cert == "") != (a.TLS.Key == "") && d.has("admin.tls.cert") != d.has("admin.tls.key") {
		d.add(d.nodes["admin.tls"], "admin.tls", "cert and key go together")
	}
}

func (d *decoder) checkInterfaces(all []Interface) {
	var seen []string
	for n, i := range all {
		key := "network.interfaces[" + strconv.Itoa(n) + "]"
		at := d.nodes[key]
		if i.Name == "" && i.MAC == "" && !d.has(key+".match.name") && !d.has(key+".match.mac") {
			d.add(at, key, "match is missing; want a name or a mac")
		}
		match := fmt.Sprintf("%s %s", i.Name, i.MAC)
		if match != " " && slices.Contains(seen, match) {
			d.add(at, key, "matches the same interface as an earlier item")
		}
		seen = append(seen, match)
		if i.DHCP && (len(i.Addresses) > 0 || i.Gateway.IsValid()) {
			d.add(d.nodes[key+".dhcp"], key+".dhcp", "given together with addresses or a gateway; want one of them")
		}
		complete := len(i.Addresses) == d.count(key+".addresses")
		if i.Gateway.IsValid() && !i.DHCP && complete && !i.Gateway.IsLinkLocalUnicast() && !reachable(i) {
			d.add(d.nodes[key+".gateway"], key+".gateway", "%s is in the range of none of the addresses", i.Gateway)
		}
	}
}

// reachable tells whether the gateway is on the link.
func reachable(i Interface) bool {
	for _, p := range i.Addresses {
		if p.Contains(i.Gateway) {
			return true
		}
	}
	return false
}
