package allocator

import (
	"cmp"
	"crypto/sha256"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"

	"skep/net/ipam"
	"skep/store"
	"skep/store/object"
)

// The numbers of networks that are chosen; those below are only for users.
const (
	firstVNI = 4096
	lastVNI  = object.MaxVNI
)

// The pool of IPv4 subnets where the swarm has none of its own.
const (
	defaultPool       = "10.0.0.0/8"
	defaultSubnetBits = 24
)

// allocateNetworks gives networks their subnets and numbers, the oldest first.
func (r *round) allocateNetworks() {
	var todo []*object.Network
	for n := range r.snap.Networks.All() {
		if n.VNI == 0 && !n.PendingDelete {
			todo = append(todo, n)
		}
	}
	if len(todo) == 0 {
		return
	}
	slices.SortStableFunc(todo, func(a, b *object.Network) int { return a.CreatedAt.Compare(b.CreatedAt) })
	l := survey(r.snap)
	for _, old := range todo {
		n := old.Clone().(*object.Network)
		n.Problem = ""
		if err := l.allot(n); err != nil {
			n = old.Clone().(*object.Network)
			n.Problem = err.Error()
		}
		if n.VNI == 0 && n.Problem == old.Problem {
			continue
		}
		r.networks[n.ID] = n
		r.changes.Update = append(r.changes.Update, n)
		if n.VNI != 0 {
			l.occupy(n)
			r.ledger.giveNetwork(n)
		}
	}
}

// land is what networks have taken, and where there may be more.
type land struct {
	pools    []ipam.Range // of IPv4
	v6       ipam.Range
	networks []*object.Network // that have their part
	vnis     map[uint32]*object.Network
	// taken are the networks' subnets, and the addresses of nodes: a network
	// around them could not reach them.
	taken []netip.Prefix
}

func survey(snap *store.Snapshot) *land {
	l := &land{vnis: map[uint32]*object.Network{}}
	if c := snap.Cluster(); c != nil {
		l.pools, l.v6 = pools(c), UniqueLocal(c.ID)
	}
	for n := range snap.Networks.All() {
		if n.VNI != 0 {
			l.occupy(n)
		}
	}
	for n := range snap.Nodes.All() {
		for _, text := range []string{n.DataPath, n.Status.Addr} {
			if a, err := netip.ParseAddr(text); err == nil && !a.IsUnspecified() {
				a = a.Unmap().WithZone("")
				l.taken = append(l.taken, netip.PrefixFrom(a, a.BitLen()))
			}
		}
	}
	return l
}

// pools are the ranges that IPv4 subnets are chosen from.
func pools(c *object.Cluster) (out []ipam.Range) {
	bits := cmp.Or(int(c.SubnetSize), defaultSubnetBits)
	for _, text := range c.DefaultAddrPool {
		if p, err := netip.ParsePrefix(text); err == nil && p.Addr().Is4() {
			out = append(out, ipam.Range{Base: p, Bits: bits})
		}
	}
	if len(out) == 0 {
		out = []ipam.Range{{Base: netip.MustParsePrefix(defaultPool), Bits: bits}}
	}
	return out
}

// UniqueLocal is the range of IPv6 subnets of a swarm, which no other network
// is likely to have (RFC 4193).
func UniqueLocal(cluster string) ipam.Range {
	sum := sha256.Sum256([]byte(cluster))
	b := [16]byte{0xfd}
	copy(b[1:6], sum[:])
	return ipam.Range{Base: netip.PrefixFrom(netip.AddrFrom16(b), 48), Bits: 64}
}

func (l *land) occupy(n *object.Network) {
	l.networks = append(l.networks, n)
	l.vnis[n.VNI] = n
	if n.IPAMOptions != nil {
		for _, c := range n.IPAMOptions.Configs {
			l.taken = append(l.taken, c.Subnet)
		}
	}
}

// allot gives a network all that it needs.
func (l *land) allot(n *object.Network) error {
	configs, err := l.subnets(n)
	if err != nil {
		return err
	}
	if n.VNI, err = l.vni(n); err != nil {
		return err
	}
	n.IPAMOptions = &swarm.IPAMOptions{Driver: swarm.Driver{Name: "default"}, Configs: configs}
	n.DriverState = swarm.Driver{Name: "overlay", Options: map[string]string{}}
	if d := n.Spec.DriverConfiguration; d != nil {
		maps.Copy(n.DriverState.Options, d.Options)
	}
	n.DriverState.Options[object.OptionVNI] = strconv.FormatUint(uint64(n.VNI), 10)
	return nil
}

// subnets are those that the user asks for, and one of each family of which
// the user asks for none.
func (l *land) subnets(n *object.Network) (out []swarm.IPAMConfig, err error) {
	has := [2]bool{}
	if o := n.Spec.IPAMOptions; o != nil {
		for _, c := range o.Configs {
			if other := l.overlapping(c.Subnet); other != nil {
				return nil, object.Errorf(errdefs.ErrInvalidArgument, "subnet %s overlaps with one of network %s", c.Subnet, other.Spec.Name)
			}
			if c.Subnet.Addr().Is6() {
				has[1] = true
			} else {
				has[0] = true
			}
			out = append(out, c)
		}
	}
	var pools [][]ipam.Range
	if !has[0] {
		pools = append(pools, l.pools)
	}
	if n.Spec.IPv6Enabled && !has[1] {
		pools = append(pools, []ipam.Range{l.v6})
	}
	for _, pool := range pools {
		free, none := ipam.FirstFree(pool, l.taken)
		if none != nil {
			return nil, none
		}
		out = append(out, swarm.IPAMConfig{Subnet: free})
	}
	for i := range out {
		if out[i].Gateway, err = gateway(n, out[i]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// gateway is the one that the user asks for, or the subnet's first host.
func gateway(n *object.Network, c swarm.IPAMConfig) (netip.Addr, error) {
	hosts, err := ipam.Hosts(c.Subnet, netip.Prefix{})
	if err == nil {
		_, err = ipam.Hosts(c.Subnet, c.Range)
	}
	if err != nil {
		return netip.Addr{}, err
	}
	g := c.Gateway
	if !g.IsValid() {
		for g = hosts.First; auxiliary(n, g); g = g.Next() {
		}
	}
	if !hosts.Contains(g) {
		return netip.Addr{}, object.Errorf(errdefs.ErrInvalidArgument, "no matching subnet for gateway %s", g)
	}
	return g, nil
}

func auxiliary(n *object.Network, a netip.Addr) bool {
	for _, aux := range n.Auxiliary {
		if aux == a {
			return true
		}
	}
	return false
}

// overlapping is a network that has addresses of a subnet.
func (l *land) overlapping(s netip.Prefix) *object.Network {
	for _, n := range l.networks {
		if n.IPAMOptions == nil {
			continue
		}
		for _, c := range n.IPAMOptions.Configs {
			if c.Subnet.Overlaps(s) {
				return n
			}
		}
	}
	return nil
}

// vni is the number that the user asks for, or the lowest that is free.
func (l *land) vni(n *object.Network) (uint32, error) {
	if want, ok, err := n.WantedVNI(); ok || err != nil {
		if other := l.vnis[want]; other != nil {
			return 0, object.Errorf(errdefs.ErrInvalidArgument, "VXLAN ID %d is in use by network %s", want, other.Spec.Name)
		}
		return want, err
	}
	for v := uint32(firstVNI); v <= lastVNI; v++ {
		if l.vnis[v] == nil {
			return v, nil
		}
	}
	return 0, object.Errorf(errdefs.ErrResourceExhausted, "no VXLAN ID is free")
}
