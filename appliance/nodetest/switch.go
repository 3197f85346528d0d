package nodetest

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// uplink is the name of a machine's interface on the switch.
const uplink = "eth0"

// netSwitch is what the machines of a swarm are plugged into: a bridge in a
// network namespace of its own, with rules that drop what may not pass.
type netSwitch struct {
	ns     netns.NsHandle
	bridge int
}

func newSwitch() (*netSwitch, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	s := &netSwitch{ns: ns}
	if err := inside(ns, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "switch"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		s.bridge = bridge.Attrs().Index
		return netlink.LinkSetUp(bridge)
	}); err != nil {
		s.close()
		return nil, fmt.Errorf("make switch: %w", err)
	}
	return s, nil
}

func (s *netSwitch) close() { _ = s.ns.Close() }

// plug connects a machine: port is the switch's end, which has the name of the
// node. A node keeps its hardware address, so that nobody has to learn it anew.
func (s *netSwitch) plug(port string, mac net.HardwareAddr, m *machine, addr netip.Prefix) error {
	err := inside(s.ns, func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: port, MasterIndex: s.bridge},
			PeerName:  uplink, PeerNamespace: netlink.NsFd(m.ns), PeerHardwareAddr: mac,
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return netlink.LinkSetUp(veth)
	})
	if err == nil {
		err = readdress(m, addr)
	}
	if err == nil {
		err = inside(s.ns, func() error { return awaitUp(port) })
	}
	if err != nil {
		return fmt.Errorf("plug %s: %w", port, err)
	}
	return nil
}

// awaitUp returns when packets pass. The kernel may put off acting on a carrier
// for a second, and a first packet that is lost until then is missed for longer.
func awaitUp(port string) error {
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		if l.Attrs().OperState == netlink.OperUp {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("link is %s", l.Attrs().OperState)
		}
	}
}

// unplug is nothing if the machine is not connected.
func (s *netSwitch) unplug(port string) {
	_ = inside(s.ns, func() error {
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// readdress gives a machine's uplink one address.
func readdress(m *machine, addr netip.Prefix) error {
	return inside(m.ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		up, err := netlink.LinkByName(uplink)
		if err != nil {
			return err
		}
		old, err := netlink.AddrList(up, netlink.FAMILY_V4)
		if err != nil {
			return err
		}
		for _, a := range old {
			if err = netlink.AddrDel(up, &a); err != nil {
				return err
			}
		}
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
		return errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(up), netlink.AddrAdd(up, &netlink.Addr{IPNet: ip}))
	})
}

// way is one direction between two ports.
type way struct{ from, to string }

// cut makes the switch drop what goes these ways, and nothing else, from one
// moment to the next.
func (s *netSwitch) cut(ways map[way]bool) error {
	return inside(s.ns, func() error { return applyCuts(ways) })
}

func applyCuts(ways map[way]bool) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	table := conn.AddTable(&nftables.Table{Name: "cuts", Family: nftables.TableFamilyBridge})
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	for w := range ways {
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(w.from)},
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: ifname(w.to)},
			&expr.Verdict{Kind: expr.VerdictDrop},
		}})
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cut: %w", err)
	}
	return nil
}

// ifname is an interface's name as the kernel compares it.
func ifname(name string) []byte {
	var b [16]byte
	copy(b[:], name)
	return b[:]
}
