// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Vxlan is a device that carries frames in UDP to other machines.
type Vxlan struct {
	Name  string
	VNI   uint32
	Port  uint16
	Local netip.Addr // from where it sends
	MTU   int
	// Learns, Floods and Mute are what the kernel's devices may do and ours do
	// not: learn from what comes in who is where; send what it has no entry for
	// to all; be silent when asked for the addresses of its neighbours.
	Learns, Floods, Mute bool
}

// ErrTaken says that another device has the same VNI and port.
var ErrTaken = errors.New("another device has this VNI and port")

// AddVxlan makes the device, not yet up, in the namespace pinned at path. Its
// UDP socket is in c's. It forwards only to stations that it has an entry for
// and answers, itself, who asks for a neighbour that it has an entry for.
func (c *Conn) AddVxlan(v Vxlan, path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("add vxlan %s: %w", v.Name, err)
	}
	defer func() { _ = ns.Close() }()
	// One request makes it where it belongs: there is no moment at which it
	// would be left in c's namespace if this process died.
	err = c.h.LinkAdd(&netlink.Vxlan{
		LinkAttrs: netlink.LinkAttrs{Name: v.Name, MTU: v.MTU, TxQLen: -1, Namespace: netlink.NsFd(ns.Fd())},
		VxlanId:   int(v.VNI), Port: int(v.Port), SrcAddr: v.Local.AsSlice(), Proxy: true,
	})
	switch {
	case errors.Is(err, unix.EEXIST):
		err = ErrTaken
	case errors.Is(err, unix.EOPNOTSUPP):
		err = fmt.Errorf("this kernel has no VXLAN, and its module vxlan is not loaded: %w", err)
	}
	if err != nil {
		return fmt.Errorf("add vxlan with VNI %d on port %d: %w", v.VNI, v.Port, err)
	}
	return nil
}
