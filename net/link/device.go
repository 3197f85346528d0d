// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

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

// SetMTU sets how large packets a device sends.
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

// Local is the link-local address that a device has by itself, by its MAC.
func Local(mac net.HardwareAddr) netip.Addr {
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

// SetMTU sets how large packets a device of this thread's namespace sends.
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
