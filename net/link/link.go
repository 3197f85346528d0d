// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Conn speaks netlink in the network namespace of the thread that opened it.
// It may be used by several goroutines.
type Conn struct {
	h *netlink.Handle
	// slow is for requests that take long, so that others do not wait for them.
	slow map[int]*nl.SocketHandle
}

// Open opens a connection to this thread's namespace.
func Open() (*Conn, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := nl.Subscribe(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err = s.SetReceiveBufferSize(answersRoom, false); err != nil {
		h.Close()
		s.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &Conn{h, map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}}, nil
}

// answersRoom holds the kernel's answers if it refuses each of batchSize
// entries, also where the kernel gives an unprivileged process less.
const answersRoom = 1 << 20

// Close closes the connection.
func (c *Conn) Close() {
	c.h.Close()
	for _, s := range c.slow {
		s.Close()
	}
}

// Bridge is a bridge as it is wanted.
type Bridge struct {
	Name    string
	Address netip.Prefix // of the node on it
	MAC     net.HardwareAddr
	MTU     int
}

// EnsureBridge makes the bridge, or adjusts the one that is there. It reports
// whether there was none.
func (c *Conn) EnsureBridge(b Bridge) (made bool, err error) {
	err = c.h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{
		Name: b.Name, MTU: b.MTU, HardwareAddr: b.MAC, TxQLen: -1,
	}})
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return false, fmt.Errorf("add bridge %s: %w", b.Name, err)
	}
	return err == nil, c.adjustBridge(b)
}

func (c *Conn) adjustBridge(b Bridge) error {
	l, err := c.h.LinkByName(b.Name)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", b.Name, err)
	}
	if l.Type() != "bridge" {
		return fmt.Errorf("link %s is a %s, not a bridge", b.Name, l.Type())
	}
	if l.Attrs().MTU != b.MTU {
		if err := c.h.LinkSetMTU(l, b.MTU); err != nil {
			return fmt.Errorf("set mtu of %s: %w", b.Name, err)
		}
	}
	// Before the link is up, so that it never has an IPv6 address.
	if err := Sysctl("net/ipv6/conf/"+b.Name+"/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// 127.0.0.1:PORT of the node is translated to an address behind the bridge.
	if err := Sysctl("net/ipv4/conf/"+b.Name+"/route_localnet", "1"); err != nil {
		return err
	}
	if err := Sysctl("net/ipv4/conf/"+b.Name+"/send_redirects", "0"); err != nil {
		return err
	}
	if err := c.onlyAddress(l, b.Address); err != nil {
		return err
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := c.h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", b.Name, err)
		}
	}
	return nil
}

func (c *Conn) onlyAddress(l netlink.Link, want netip.Prefix) error {
	have, err := c.h.AddrList(l, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	for _, a := range have {
		if p, ok := prefix(a.IPNet); !ok || p != want {
			if err := c.h.AddrDel(l, &a); err != nil {
				return fmt.Errorf("remove address %s: %w", a.IPNet, err)
			}
		}
	}
	if err := c.h.AddrReplace(l, &netlink.Addr{IPNet: ipNet(want)}); err != nil {
		return fmt.Errorf("add address %s: %w", want, err)
	}
	return nil
}

// Veth is a pair of devices: one in this namespace on a bridge, its peer in
// another namespace with an address.
type Veth struct {
	Name, Bridge string
	// Hairpin lets frames leave by the port they came from. Needed only where
	// the kernel shows bridged frames to the packet filter and so translates
	// an endpoint's connection to itself on the bridge.
	Hairpin bool
	Peer    string
	Address netip.Prefix
	Gateway netip.Addr
	MAC     net.HardwareAddr
	MTU     int
}

// Plug runs in the new namespace (on its thread): it makes the pair with the
// node's end in c's namespace and sets up this end.
func (c *Conn) Plug(v Veth) error {
	self, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer func() { _ = self.Close() }()
	br, err := c.h.LinkByName(v.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", v.Bridge, err)
	}
	// No device of the namespace speaks IPv6 but the loopback one.
	if err := Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	pair := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{
			Name: v.Name, MTU: v.MTU, TxQLen: -1, Flags: net.FlagUp, MasterIndex: br.Attrs().Index,
		},
		PeerName: v.Peer, PeerNamespace: netlink.NsFd(self.Fd()), PeerHardwareAddr: v.MAC, PeerMTU: uint32(v.MTU), PeerTxQLen: -1,
	}
	if err := c.h.LinkAdd(pair); err != nil {
		return fmt.Errorf("add veth %s: %w", v.Name, err)
	}
	if v.Hairpin {
		if err := c.h.LinkSetHairpin(pair, true); err != nil {
			return fmt.Errorf("set hairpin of %s: %w", v.Name, err)
		}
	}
	if err := v.setPeer(); err != nil {
		return err
	}
	return c.settle(v.Name, v.Bridge)
}

// settle makes the kernel act on changes of the devices' carriers that it has
// put off: until then they drop what is sent. To ask for a device does it.
func (c *Conn) settle(names ...string) error {
	for _, name := range names {
		if _, err := c.h.LinkByName(name); err != nil {
			return fmt.Errorf("find link %s: %w", name, err)
		}
	}
	return nil
}

func (v Veth) setPeer() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	if err = loopback(h); err != nil {
		return err
	}
	peer, err := h.LinkByName(v.Peer)
	if err != nil {
		return fmt.Errorf("find %s: %w", v.Peer, err)
	}
	if err = h.AddrAdd(peer, &netlink.Addr{IPNet: ipNet(v.Address)}); err != nil {
		return fmt.Errorf("add address %s: %w", v.Address, err)
	}
	if err = h.LinkSetUp(peer); err != nil {
		return fmt.Errorf("set %s up: %w", v.Peer, err)
	}
	if err = (&Conn{h: h}).settle(v.Peer); err != nil {
		return err
	}
	err = h.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Gw: v.Gateway.AsSlice()})
	if err != nil {
		return fmt.Errorf("add default route by %s: %w", v.Gateway, err)
	}
	return nil
}

// Loopback sets the loopback device of this thread's namespace up.
func Loopback() error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	return loopback(h)
}

func loopback(h *netlink.Handle) error {
	// The loopback device is the first of every namespace.
	if err := h.LinkSetUp(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// Enslave puts a device on a bridge, if it is not.
func (c *Conn) Enslave(name, bridge string) error {
	l, err := c.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	br, err := c.h.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if l.Attrs().MasterIndex == br.Attrs().Index {
		return nil
	}
	if err := c.h.LinkSetMaster(l, br); err != nil {
		return fmt.Errorf("put %s on %s: %w", name, bridge, err)
	}
	return nil
}

// doomed is the group of devices that are being removed.
const doomed = 0x536b6570

// Remove removes devices and, of pairs, their peers. The kernel waits for all
// its processors when it removes a device, but only once for a group.
func (c *Conn) Remove(names ...string) error {
	some := false
	for _, name := range names {
		l, err := c.h.LinkByName(name)
		if err == nil {
			err = c.h.LinkSetGroup(l, doomed)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("remove link %s: %w", name, err)
		}
		some = some || err == nil
	}
	if !some {
		return nil
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.Sockets = c.slow
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomed)))
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !gone(err) {
		return fmt.Errorf("remove links %v: %w", names, err)
	}
	return nil
}

// Names lists the devices whose names have the prefix.
func (c *Conn) Names(prefix string) ([]string, error) {
	all, err := c.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var names []string
	for _, l := range all {
		if strings.HasPrefix(l.Attrs().Name, prefix) {
			names = append(names, l.Attrs().Name)
		}
	}
	return names, nil
}

// PeerStats are the counters of the device at the other end of a pair: what
// this end sent, it received.
func (c *Conn) PeerStats(name string) (container.NetworkStats, error) {
	l, err := c.h.LinkByName(name)
	if err != nil {
		return container.NetworkStats{}, fmt.Errorf("find link %s: %w", name, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return container.NetworkStats{}, nil
	}
	return container.NetworkStats{
		RxBytes: s.TxBytes, RxPackets: s.TxPackets, RxErrors: s.TxErrors, RxDropped: s.TxDropped,
		TxBytes: s.RxBytes, TxPackets: s.RxPackets, TxErrors: s.RxErrors, TxDropped: s.RxDropped,
	}, nil
}

func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ENODEV)
}
