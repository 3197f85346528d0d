// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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
