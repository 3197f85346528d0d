package config

import (
	"net"
	"net/netip"
	"path"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

func (d *decoder) config(n *yaml.Node, c *Config) {
	d.mapping(
		n, "",
		d.str("hostname", "a host name", &c.Hostname, hostname),
		d.str("data_dir", "an absolute path", &c.DataDir, func(s string) bool {
			return absolute(s) && path.Clean(s) != "/"
		}),
		field{"swarm", func(n *yaml.Node, key string) { d.swarm(n, key, &c.Swarm) }},
		field{"admin", func(n *yaml.Node, key string) { d.admin(n, key, &c.Admin) }},
		field{"registries", func(n *yaml.Node, key string) {
			d.items(n, key, func(n *yaml.Node, key string) {
				c.Registries = append(c.Registries, d.registry(n, key))
			})
		}},
		field{"images", func(n *yaml.Node, key string) {
			d.mapping(n, key, d.strs("preload", "an absolute path", &c.Images.Preload, absolute))
		}},
		field{"network", func(n *yaml.Node, key string) { d.network(n, key, &c.Network) }},
		field{"log", func(n *yaml.Node, key string) {
			d.mapping(
				n, key,
				d.oneOf("level", &c.Log.Level, "debug", "info", "warn", "error"),
				d.oneOf("format", &c.Log.Format, "text", "json"),
			)
		}},
	)
	c.DataDir = path.Clean(c.DataDir)
}

func (d *decoder) swarm(n *yaml.Node, key string, s *Swarm) {
	const where = "an address or the name of an interface"
	d.mapping(
		n, key,
		d.str("listen", "ADDRESS:PORT or INTERFACE:PORT", &s.Listen, listenAddress),
		d.str("advertise", where, &s.Advertise, func(s string) bool {
			a, err := netip.ParseAddr(s)
			return addressOrIface(s) && (err != nil || !a.IsUnspecified())
		}),
		field{"data_path", func(n *yaml.Node, key string) {
			d.mapping(
				n, key,
				d.str("address", where, &s.DataPath.Address, addressOrIface),
				// The range that Swarm allows.
				d.integer("port", 1024, 49151, func(v int) { s.DataPath.Port = uint16(v) }),
			)
		}},
		d.oneOf("availability", &s.Availability, "active", "pause", "drain"),
		field{"labels", func(n *yaml.Node, key string) { s.Labels = d.labels(n, key) }},
		field{"init", func(n *yaml.Node, key string) { s.Init = d.newSwarm(n, key) }},
		field{"join", func(n *yaml.Node, key string) { s.Join = d.join(n, key) }},
	)
}

func (d *decoder) labels(n *yaml.Node, key string) map[string]string {
	labels := map[string]string{}
	d.pairs(n, key, func(k, v *yaml.Node) {
		at := clip(join(key, k.Value))
		switch {
		case k.Value == "" || strings.ContainsAny(k.Value, " \t\n="):
			d.add(k, at, "a label's name is not empty and has neither spaces nor =")
		case null(v):
			labels[k.Value] = ""
		case v.Kind != yaml.ScalarNode || v.ShortTag() != "!!str":
			d.add(v, at, "is %s; want a string (put it in quotes)", kind(v))
		default:
			labels[k.Value] = v.Value
		}
	})
	return labels
}

func (d *decoder) newSwarm(n *yaml.Node, key string) *Init {
	in := &Init{CertExpiry: 90 * 24 * time.Hour}
	d.mapping(
		n, key,
		d.boolean("autolock", &in.Autolock),
		d.duration("cert_expiry", time.Hour, &in.CertExpiry),
		field{"address_pool", func(n *yaml.Node, key string) {
			d.items(n, key, func(n *yaml.Node, key string) {
				p := Pool{Size: 24}
				d.mapping(
					n, key,
					d.prefix("base", "an IPv4 range such as 10.20.0.0/16", &p.Base, func(p netip.Prefix) bool {
						return p.Addr().Is4() && p == p.Masked()
					}),
					d.integer("size", 1, 29, func(v int) { p.Size = v }),
				)
				in.AddressPool = append(in.AddressPool, p)
			})
		}},
	)
	return in
}

func (d *decoder) join(n *yaml.Node, key string) *Join {
	j := &Join{}
	var file string
	d.mapping(
		n, key,
		d.material("token", "the join token", &j.Token),
		d.str("token_file", "an absolute path", &file, absolute),
		d.strs("managers", "HOST:PORT", &j.Managers, hostPort),
	)
	if file != "" && j.Token != "" {
		d.add(d.nodes[key+".token_file"], key+".token_file", "given together with token; want one of them")
	}
	if file != "" {
		j.Token = Material(file)
	}
	return j
}

func (d *decoder) admin(n *yaml.Node, key string, a *Admin) {
	var listen []string
	d.mapping(
		n, key,
		d.strs("listen", "unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT", &listen, func(s string) bool {
			_, ok := listener(s)
			return ok
		}),
		field{"tls", func(n *yaml.Node, key string) {
			d.mapping(
				n, key,
				d.material("client_ca", "the PEM certificate", &a.TLS.ClientCA),
				d.material("cert", "the PEM certificate", &a.TLS.Cert),
				d.material("key", "the PEM key", &a.TLS.Key),
			)
		}},
		field{"groups", func(n *yaml.Node, key string) { a.Groups = d.groups(n, key) }},
		d.boolean("local_exec_only", &a.LocalExecOnly),
	)
	if d.has(key + ".listen") {
		a.Listen = nil
	}
	for _, s := range listen {
		l, _ := listener(s)
		a.Listen = append(a.Listen, l)
	}
}

// listener reads unix:///PATH, vsock://:PORT or tcp://ADDRESS:PORT.
func listener(s string) (Listener, bool) {
	network, rest, ok := strings.Cut(s, "://")
	l := Listener{Network: network, Address: rest}
	switch network {
	case "unix":
		return l, ok && absolute(rest) && path.Clean(rest) != "/" && !strings.HasSuffix(rest, "/")
	case "vsock":
		p, colon := strings.CutPrefix(rest, ":")
		n, err := strconv.ParseUint(p, 10, 32)
		// The last number means "any port" to the kernel.
		return Listener{network, p}, ok && colon && err == nil && n > 0 && n < 1<<32-1
	case "tcp":
		h, p, err := net.SplitHostPort(rest)
		return l, ok && err == nil && port(p) && (h == "" || address(h))
	}
	return l, false
}

func (d *decoder) groups(n *yaml.Node, key string) map[uint32]string {
	groups := map[uint32]string{}
	d.pairs(n, key, func(k, v *yaml.Node) {
		at := clip(join(key, k.Value))
		gid, err := strconv.ParseUint(k.Value, 10, 32)
		if err != nil {
			d.add(k, at, "%q; want the number of a group", clip(k.Value))
			return
		}
		var role string
		d.oneOf("", &role, "viewer", "operator", "admin").read(v, at)
		if null(v) {
			d.add(v, at, "is empty; want viewer, operator, admin")
		}
		groups[uint32(gid)] = role
	})
	return groups
}

func (d *decoder) registry(n *yaml.Node, key string) Registry {
	var r Registry
	var file string
	d.mapping(
		n, key,
		d.str("host", "a registry such as docker.io or 10.0.0.5:5000", &r.Host, registryHost),
		d.strs("mirrors", "https://HOST", &r.Mirrors, mirrorURL),
		d.boolean("insecure", &r.Insecure),
		d.material("ca", "the PEM certificate", &r.CA),
		field{"auth", func(n *yaml.Node, key string) {
			d.mapping(
				n, key,
				d.str("username", "a name", &r.Username, nil),
				d.str("password_file", "an absolute path", &file, absolute),
			)
			if r.Username == "" || file == "" {
				d.add(n, key, "incomplete; want username and password_file")
			}
		}},
	)
	r.Password = Material(file)
	return r
}

func (d *decoder) network(n *yaml.Node, key string, out *Network) {
	d.mapping(
		n, key,
		field{"interfaces", func(n *yaml.Node, key string) {
			d.items(n, key, func(n *yaml.Node, key string) {
				out.Interfaces = append(out.Interfaces, d.iface(n, key))
			})
		}},
		d.strs("ntp", "a host name or an address", &out.NTP, func(s string) bool { return hostname(s) || address(s) }),
	)
}

func (d *decoder) iface(n *yaml.Node, key string) Interface {
	var i Interface
	var addresses, dns []string
	var gateway string
	d.mapping(
		n, key,
		field{"match", func(n *yaml.Node, key string) {
			d.mapping(
				n, key,
				d.str("name", "the name of an interface", &i.Name, iface),
				d.str("mac", "a MAC address", &i.MAC, func(s string) bool {
					m, err := net.ParseMAC(s)
					return err == nil && len(m) == 6
				}),
			)
		}},
		d.boolean("dhcp", &i.DHCP),
		d.strs("addresses", "an address with its prefix such as 10.0.0.1/24", &addresses, func(s string) bool {
			p, err := netip.ParsePrefix(s)
			return err == nil && !p.Addr().Is4In6() && !p.Addr().IsUnspecified()
		}),
		d.str("gateway", "an address", &gateway, address),
		d.strs("dns", "an address", &dns, address),
		d.integer("mtu", 1280, 65535, func(v int) { i.MTU = v }),
	)
	for _, s := range addresses {
		i.Addresses = append(i.Addresses, netip.MustParsePrefix(s))
	}
	for _, s := range dns {
		i.DNS = append(i.DNS, netip.MustParseAddr(s))
	}
	if gateway != "" {
		i.Gateway = netip.MustParseAddr(gateway)
	}
	i.MAC = strings.ToLower(i.MAC)
	return i
}
