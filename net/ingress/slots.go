// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"net"
	"net/netip"

	"skep/store/object"
)

// Each node has a slot in the mesh, from 1 to lastSlot. Slot 0 is no node's.
const (
	lastSlot = object.LastSlot
	slots    = lastSlot + 1
)

// A wire port says in its lower bits which node a connection came in by, in
// the others which of a task's ports it is for: so 40 ports of a task have one
// for each node, between those that services like to use and the last.
const (
	firstWire   = 20 * slots
	indexes     = object.KeptPorts
	slotBits    = slots - 1
	indexOfWire = 0xffff &^ slotBits
)

// routers is where the routers' addresses are from. They are link-local: nobody
// else in the world is reached by them.
func routers() netip.Prefix { return netip.MustParsePrefix("169.254.64.0/22") }

// RouterMAC is that of a node's router on the ingress network.
func RouterMAC(slot int) net.HardwareAddr {
	return net.HardwareAddr{0x02, 0x53, 0x4b, 0x00, byte(slot >> 8), byte(slot)}
}

// RouterAddress is whom a node's router poses as, for clients whose own address
// means somebody else on other nodes.
func RouterAddress(slot int) netip.Addr {
	first := routers().Addr().As4()
	return netip.AddrFrom4([4]byte{first[0], first[1], first[2] + byte(slot>>8), byte(slot)})
}

// WirePort is the port of a task that a node's router sends connections to that
// are for the task's port with this index. The second result is false if there
// is none.
func WirePort(index, slot int) (uint16, bool) {
	if index < 0 || index >= indexes || slot < 1 || slot > lastSlot {
		return 0, false
	}
	return uint16(firstWire + index*slots + slot), true
}

// gatewayMAC is nobody's. What a task sends to the mesh's gateway goes there,
// and the bridge changes it to the router's that the connection came in by.
func gatewayMAC() net.HardwareAddr { return net.HardwareAddr{0x02, 0x42, 0xff, 0xff, 0xff, 0xff} }
