// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Leg is a pair of devices that gives a namespace which is there already a
// place on a bridge, and by it the way to everywhere.
type Leg struct {
	Name, Bridge string // in this namespace
	Peer         string
	Address      netip.Prefix
	Gateway      netip.Addr
	MAC          net.HardwareAddr
}

// EnsureLeg makes what is missing of the leg into the namespace pinned at path.
// It reports whether something was.
func (c *Conn) EnsureLeg(l Leg, path string) (changed bool, err error) {
	ns, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("add leg %s: %w", l.Name, err)
	}
	defer func() { _ = ns.Close() }()
	br, err := c.h.LinkByName(l.Bridge)
	if err != nil {
		return false, fmt.Errorf("find bridge %s: %w", l.Bridge, err)
	}
	if changed, err = c.ensurePair(l, br, ns, path); err != nil {
		return changed, err
	}
	set := false
	err = Within(path, func() (err error) {
		set, err = l.ensurePeer()
		return err
	})
	changed = changed || set
	if err != nil {
		return changed, err
	}
	return changed, c.settle(l.Name)
}

// ensurePair makes the pair, if there are not both ends of one.
func (c *Conn) ensurePair(l Leg, br netlink.Link, ns *os.File, path string) (changed bool, err error) {
	here, err := c.h.LinkByName(l.Name)
	if err != nil && !gone(err) {
		return false, fmt.Errorf("find link %s: %w", l.Name, err)
	}
	if err == nil {
		whole := false
		err = Within(path, func() (err error) {
			whole, err = l.isPeerOf(here)
			return err
		})
		if err != nil {
			return false, err
		}
		if whole {
			return c.adjustEnd(here, br)
		}
		if err = c.Remove(l.Name); err != nil {
			return false, err
		}
	}
	err = c.h.LinkAdd(&netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: l.Name, MTU: br.Attrs().MTU, TxQLen: -1, Flags: net.FlagUp, MasterIndex: br.Attrs().Index,
		},
		PeerName: l.Peer, PeerNamespace: netlink.NsFd(ns.Fd()), PeerHardwareAddr: l.MAC,
		PeerMTU: uint32(br.Attrs().MTU), PeerTxQLen: -1,
	})
	if err != nil {
		return true, fmt.Errorf("add veth %s: %w", l.Name, err)
	}
	return true, nil
}

func (l Leg) isPeerOf(here netlink.Link) (bool, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	there, err := h.LinkByName(l.Peer)
	if gone(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", l.Peer, err)
	}
	return there.Type() == "veth" && there.Attrs().ParentIndex == here.Attrs().Index &&
		here.Attrs().ParentIndex == there.Attrs().Index, nil
}

func (c *Conn) adjustEnd(here, br netlink.Link) (changed bool, err error) {
	if here.Attrs().MasterIndex != br.Attrs().Index {
		if err := c.h.LinkSetMaster(here, br); err != nil {
			return true, fmt.Errorf("put %s on %s: %w", here.Attrs().Name, br.Attrs().Name, err)
		}
		changed = true
	}
	if here.Attrs().Flags&net.FlagUp == 0 {
		if err := c.h.LinkSetUp(here); err != nil {
			return true, fmt.Errorf("set %s up: %w", here.Attrs().Name, err)
		}
		changed = true
	}
	return changed, nil
}

// ensurePeer sets up the end in this thread's namespace.
func (l Leg) ensurePeer() (changed bool, err error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return false, fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	peer, err := h.LinkByName(l.Peer)
	if err != nil {
		return false, fmt.Errorf("find link %s: %w", l.Peer, err)
	}
	if err = Sysctl("net/ipv6/conf/"+l.Peer+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	have, err := h.AddrList(peer, unix.AF_INET)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", l.Peer, err)
	}
	changed = true
	if len(have) == 1 {
		p, ok := prefix(have[0].IPNet)
		changed = !ok || p != l.Address
	}
	c := &Conn{h: h}
	if err = c.onlyAddress(peer, l.Address); err != nil {
		return changed, err
	}
	if peer.Attrs().Flags&net.FlagUp == 0 {
		if err = h.LinkSetUp(peer); err != nil {
			return true, fmt.Errorf("set %s up: %w", l.Peer, err)
		}
		changed = true
	}
	if err = c.settle(l.Peer); err != nil {
		return changed, err
	}
	routed, err := c.ensureRoute(netlink.Route{LinkIndex: peer.Attrs().Index, Gw: l.Gateway.AsSlice(), Table: unix.RT_TABLE_MAIN})
	return changed || routed, err
}

// ensureRoute makes a route of IPv4, if it is not there. There is no other to
// the same destination in its table afterwards.
func (c *Conn) ensureRoute(want netlink.Route) (changed bool, err error) {
	const filter = netlink.RT_FILTER_TABLE | netlink.RT_FILTER_DST
	have, err := c.h.RouteListFiltered(unix.AF_INET, &want, filter)
	if err != nil {
		return false, fmt.Errorf("list routes: %w", err)
	}
	if len(have) == 1 && have[0].LinkIndex == want.LinkIndex && have[0].Gw.Equal(want.Gw) {
		return false, nil
	}
	if err := c.h.RouteReplace(&want); err != nil {
		return true, fmt.Errorf("set route to %s by %s: %w", want.Dst, want.Gw, err)
	}
	return true, nil
}
