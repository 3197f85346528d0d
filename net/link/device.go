// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// OpenIn opens a connection to the namespace pinned at path. While it is open
// the namespace does not end.
func OpenIn(path string) (*Conn, error) {
	var c *Conn
	err := Within(path, func() (err error) {
		c, err = Open()
		return err
	})
	return c, err
}

// Device is a device as the kernel has it.
type Device struct {
	Name   string
	Index  int
	Kind   string // bridge, veth, vxlan, …
	Up     bool
	MTU    int
	MAC    net.HardwareAddr
	Master int    // the index of the bridge that it is a port of, or 0
	Vxlan  *Vxlan // of a device of that kind
}

// Devices lists the namespace's devices by name.
func (c *Conn) Devices() (map[string]Device, error) {
	all, err := c.h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	out := make(map[string]Device, len(all))
	for _, l := range all {
		out[l.Attrs().Name] = device(l)
	}
	return out, nil
}

// Device finds a device. The second result is false if there is none.
func (c *Conn) Device(name string) (Device, bool, error) {
	l, err := c.h.LinkByName(name)
	if gone(err) {
		return Device{}, false, nil
	}
	if err != nil {
		return Device{}, false, fmt.Errorf("find link %s: %w", name, err)
	}
	return device(l), true, nil
}

func device(l netlink.Link) Device {
	a := l.Attrs()
	d := Device{
		Name: a.Name, Index: a.Index, Kind: l.Type(), Up: a.Flags&net.FlagUp != 0,
		MTU: a.MTU, MAC: a.HardwareAddr, Master: a.MasterIndex,
	}
	if v, ok := l.(*netlink.Vxlan); ok {
		local, _ := netip.AddrFromSlice(v.SrcAddr)
		d.Vxlan = &Vxlan{
			Name: a.Name, VNI: uint32(v.VxlanId), Port: uint16(v.Port), Local: local.Unmap(), MTU: a.MTU,
			Learns: v.Learning, Floods: len(v.Group) > 0 && !v.Group.IsUnspecified(), Mute: !v.Proxy,
		}
	}
	return d
}

// AddBridge makes a bridge that is no host: it has no address, nothing listens
// to what groups its ports join, and there are no VLANs.
func (c *Conn) AddBridge(name string, mac net.HardwareAddr, mtu int) error {
	err := c.h.LinkAdd(&netlink.Bridge{
		LinkAttrs:         netlink.LinkAttrs{Name: name, HardwareAddr: mac, MTU: mtu, TxQLen: -1},
		MulticastSnooping: new(false),
		// Without VLANs, or what is programmed would be there for each of them.
		VlanDefaultPVID: new(uint16(0)),
	})
	if err != nil {
		return fmt.Errorf("add bridge %s: %w", name, err)
	}
	return nil
}

// SetMTU, SetMAC and SetUp change one thing of a device.
func (c *Conn) SetMTU(d Device, mtu int) error {
	return changed("mtu", d, c.h.LinkSetMTU(d.link(), mtu))
}

// SetMAC sets a device's address.
func (c *Conn) SetMAC(d Device, mac net.HardwareAddr) error {
	return changed("address", d, c.h.LinkSetHardwareAddr(d.link(), mac))
}

// SetUp lets a device pass packets, at once.
func (c *Conn) SetUp(d Device) error {
	if err := c.h.LinkSetUp(d.link()); err != nil {
		return fmt.Errorf("set %s up: %w", d.Name, err)
	}
	return c.settle(d.Name)
}

func (d Device) link() netlink.Link {
	return &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: d.Name, Index: d.Index}}
}

func changed(what string, d Device, err error) error {
	if err != nil {
		return fmt.Errorf("set %s of %s: %w", what, d.Name, err)
	}
	return nil
}

// Addresses lists the addresses of a device.
func (c *Conn) Addresses(d Device) ([]netip.Prefix, error) {
	list, err := c.h.AddrList(d.link(), unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", d.Name, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		if p, ok := prefix(a.IPNet); ok {
			out = append(out, p)
		}
	}
	return out, nil
}

// AddAddress gives a device an address, without asking whether others have it.
func (c *Conn) AddAddress(d Device, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := c.h.AddrReplace(d.link(), a); err != nil {
		return fmt.Errorf("add address %s: %w", p, err)
	}
	return nil
}

// RemoveAddress takes an address away.
func (c *Conn) RemoveAddress(d Device, p netip.Prefix) error {
	err := c.h.AddrDel(d.link(), &netlink.Addr{IPNet: ipNet(p)})
	if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove address %s: %w", p, err)
	}
	return nil
}

// Treatment is what a bridge does at one of its ports.
type Treatment struct {
	Learn     bool // from what comes in, who is behind it
	Unknown   bool // frames to stations that it does not know leave here
	Multicast bool // frames to groups leave here
	Broadcast bool // frames to all leave here
}

// Treat sets how a bridge treats a port.
func (c *Conn) Treat(port Device, t Treatment) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.Sockets = c.slow
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(port.Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for kind, on := range t.attributes() {
		var b uint8
		if *on {
			b = 1
		}
		info.AddRtAttr(kind, nl.Uint8Attr(b))
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set %s as a port: %w", port.Name, err)
	}
	return nil
}

func (t *Treatment) attributes() map[int]*bool {
	return map[int]*bool{
		nl.IFLA_BRPORT_LEARNING: &t.Learn, nl.IFLA_BRPORT_UNICAST_FLOOD: &t.Unknown,
		nl.IFLA_BRPORT_MCAST_FLOOD: &t.Multicast, nl.IFLA_BRPORT_BCAST_FLOOD: &t.Broadcast,
	}
}

// Treatments reads how bridges treat their ports, by index.
func (c *Conn) Treatments() (map[int]Treatment, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.Sockets = c.slow
	req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("list ports: %w", err)
	}
	out := map[int]Treatment{}
	for _, m := range msgs {
		head := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[head.Len():])
		if err != nil {
			return nil, fmt.Errorf("list ports: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK != unix.IFLA_PROTINFO {
				continue
			}
			inner, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, fmt.Errorf("list ports: %w", err)
			}
			out[int(head.Index)] = treatment(inner)
		}
	}
	return out, nil
}

func treatment(attrs []syscall.NetlinkRouteAttr) Treatment {
	var t Treatment
	fields := t.attributes()
	for _, a := range attrs {
		if on, ok := fields[int(a.Attr.Type)]; ok && len(a.Value) > 0 {
			*on = a.Value[0] != 0
		}
	}
	return t
}

// SoftwareChecksums makes this thread's namespace compute the checksums of what
// the device sends itself: some hardware gets those of tunnels wrong.
func SoftwareChecksums(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_STXCSUM}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return fmt.Errorf("switch off checksums of %s: %w", name, errno)
	}
	return nil
}

// LinkLocal is the address that a device has by itself, by its MAC.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	b := [16]byte{0: 0xfe, 1: 0x80, 11: 0xff, 12: 0xfe}
	if len(mac) == 6 {
		copy(b[8:11], mac[:3])
		copy(b[13:], mac[3:])
		b[8] ^= 2
	}
	return netip.AddrFrom16(b)
}

// SpeakIPv6 lets a device of this thread's namespace speak IPv6, or not; if it
// does, it has only the addresses that it is given and asks nobody for more.
func SpeakIPv6(name string, speaks bool) error {
	off := "1"
	if speaks {
		off = "0"
	}
	for _, s := range []string{"addr_gen_mode=1", "accept_ra=0", "accept_redirects=0", "accept_dad=0", "dad_transmits=0", "disable_ipv6=" + off} {
		key, value, _ := strings.Cut(s, "=")
		err := Sysctl("net/ipv6/conf/"+name+"/"+key, value)
		if errors.Is(err, os.ErrNotExist) && !speaks {
			return nil // the kernel has no IPv6
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// SetMTU sets that of a device of this thread's namespace.
func SetMTU(name string, mtu int) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	c := &Conn{h: h}
	d, ok, err := c.Device(name)
	if err != nil || !ok {
		return errors.Join(err, fmt.Errorf("find link %s: %w", name, unix.ENODEV))
	}
	return c.SetMTU(d, mtu)
}
