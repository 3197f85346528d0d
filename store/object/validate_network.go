package object

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// MaxVNI is the highest number that a network can have.
const MaxVNI = 1<<24 - 1

// The bounds of a network's MTU: the least that IPv4 and IPv6 need, and the
// most that a device can have.
const (
	minMTU, minMTUv6 = 68, 1280
	maxMTU           = 65535
)

// ValidateNetwork says what is wrong with a network that is to be made, as far
// as it shows without the rest of the swarm.
func ValidateNetwork(n *Network) error {
	if err := dnsName(n.Spec.Name); err != nil {
		return err
	}
	switch {
	case n.Spec.Ingress && n.Spec.Attachable:
		return invalid("ingress network cannot be attachable")
	case n.Spec.Ingress && n.Spec.Internal:
		return invalid("ingress network cannot be internal")
	}
	if o := n.Spec.IPAMOptions; o != nil {
		for i, c := range o.Configs {
			if err := validateSubnet(c, o.Configs[:i]); err != nil {
				return err
			}
		}
	}
	if err := validateAuxiliary(n); err != nil {
		return err
	}
	return networkOptions(n)
}

// validateSubnet looks at one subnet and those before it.
func validateSubnet(c swarm.IPAMConfig, before []swarm.IPAMConfig) error {
	s := c.Subnet
	switch {
	case !s.IsValid():
		return invalid("ipam configuration: every range and gateway needs a subnet")
	case s.Addr().Is4In6():
		return invalid("ipam configuration: invalid subnet %s", s)
	case s != s.Masked():
		return invalid("invalid subnet %s: it should be %s", s, s.Masked())
	case s.Bits() > s.Addr().BitLen()-2:
		return invalid("invalid subnet %s: it has fewer than four addresses", s)
	case c.Range.IsValid() && (c.Range.Bits() < s.Bits() || !s.Contains(c.Range.Addr())):
		return invalid("ipam configuration: subnet %s does not contain range %s", s, c.Range)
	case c.Range.IsValid() && c.Range != c.Range.Masked():
		return invalid("invalid ip-range %s: it should be %s", c.Range, c.Range.Masked())
	case c.Gateway.IsValid() && !hostOf(s, c.Gateway):
		return invalid("ipam configuration: subnet %s does not contain gateway %s", s, c.Gateway)
	}
	for _, other := range before {
		if other.Subnet.Overlaps(s) {
			return invalid("subnets %s and %s overlap", other.Subnet, s)
		}
	}
	return nil
}

// hostOf reports whether a host of the subnet may have an address: neither the
// one that stands for the subnet nor IPv4's broadcast.
func hostOf(s netip.Prefix, a netip.Addr) bool {
	broadcast := s.Addr().Is4() && (!a.Next().IsValid() || !s.Contains(a.Next()))
	return s.Contains(a) && a != s.Masked().Addr() && !broadcast
}

func validateAuxiliary(n *Network) error {
	taken := map[netip.Addr]string{}
	for _, name := range slices.Sorted(maps.Keys(n.Auxiliary)) {
		a, in := n.Auxiliary[name], false
		if n.Spec.IPAMOptions != nil {
			for _, c := range n.Spec.IPAMOptions.Configs {
				in = in || hostOf(c.Subnet, a)
				if c.Gateway == a {
					return invalid("auxiliary address %s is the gateway's", a)
				}
			}
		}
		if !in {
			return invalid("no matching subnet for aux-address %s", a)
		}
		if other, ok := taken[a]; ok {
			return invalid("auxiliary addresses %s and %s are the same", other, name)
		}
		taken[a] = name
	}
	return nil
}

// networkOptions refuses a word that is no option: who misspells "encrypted"
// would have a network that is not. Other drivers' options, whose names have
// dots, are let be.
func networkOptions(n *Network) error {
	if d := n.Spec.DriverConfiguration; d != nil {
		for _, name := range slices.Sorted(maps.Keys(d.Options)) {
			if name != OptionEncrypted && !strings.Contains(name, ".") {
				return invalid("unknown option %q of an overlay network: there are %s, %s and %s", name, OptionEncrypted, OptionMTU, OptionVNI)
			}
		}
	}
	if _, _, err := n.WantedVNI(); err != nil {
		return err
	}
	text, ok := n.Option(OptionMTU)
	if !ok {
		return nil
	}
	least := minMTU
	if n.Spec.IPv6Enabled {
		least = minMTUv6
	}
	if mtu, err := strconv.Atoi(text); err != nil || mtu < least || mtu > maxMTU {
		return invalid("invalid MTU %q: it is a number from %d to %d", text, least, maxMTU)
	}
	return nil
}

// WantedVNI is the number that the user asks for, if any. Where the user gives
// one for each subnet, as Docker does, it is the first: we need only one.
func (n *Network) WantedVNI() (vni uint32, ok bool, err error) {
	text, _ := n.Option(OptionVNI)
	if text == "" {
		return 0, false, nil
	}
	for i, one := range strings.Split(text, ",") {
		v, err := strconv.ParseUint(strings.TrimSpace(one), 10, 32)
		if err != nil || v == 0 || v > MaxVNI {
			return 0, false, invalid("VXLAN ID %q is not a number from 1 to %d", one, MaxVNI)
		}
		if i == 0 {
			vni = uint32(v)
		}
	}
	return vni, true, nil
}
