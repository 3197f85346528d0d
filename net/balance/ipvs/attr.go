// SPDX-License-Identifier: Apache-2.0

package ipvs

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// The attributes of services.
const (
	svcFamily    = 1
	svcProtocol  = 2
	svcAddress   = 3
	svcPort      = 4
	svcMark      = 5
	svcScheduler = 6
	svcFlags     = 7
	svcTimeout   = 8
	svcNetmask   = 9
)

// The attributes of destinations.
const (
	dstAddress = 1
	dstPort    = 2
	dstMethod  = 3
	dstWeight  = 4
	dstUpper   = 5
	dstLower   = 6
	dstActive  = 7
	dstPassive = 8
	dstFamily  = 11
)

const (
	// scheduler gives each destination its turn.
	scheduler = "rr"
	// masquerade is the method that translates addresses.
	masquerade = 0
)

func (c Command) marshal() ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, c.Service.encode)
	if c.Verb == AddDestination || c.Verb == ChangeDestination || c.Verb == DeleteDestination {
		ae.Nested(attrDest, c.Destination.encode)
	}
	return ae.Encode()
}

func (s Service) encode(ae *netlink.AttributeEncoder) error {
	ae.Uint16(svcFamily, family(s.Address))
	if s.Mark != 0 {
		ae.Uint32(svcMark, s.Mark)
	} else {
		ae.Uint16(svcProtocol, uint16(s.Protocol))
		ae.Bytes(svcAddress, s.Address.AsSlice())
		ae.Bytes(svcPort, binary.BigEndian.AppendUint16(nil, s.Port))
	}
	ae.String(svcScheduler, scheduler)
	ae.Bytes(svcFlags, []byte{0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff}) // none, of all
	ae.Uint32(svcTimeout, s.Tag)
	// Of IPv4 a mask, of IPv6 a length: one client each.
	netmask := ^uint32(0)
	if s.Address.Is6() {
		netmask = uint32(s.Address.BitLen())
	}
	ae.Uint32(svcNetmask, netmask)
	return nil
}

func (d Destination) encode(ae *netlink.AttributeEncoder) error {
	ae.Bytes(dstAddress, d.Address.AsSlice())
	ae.Bytes(dstPort, binary.BigEndian.AppendUint16(nil, d.Port))
	ae.Uint16(dstFamily, family(d.Address))
	ae.Uint32(dstMethod, masquerade)
	ae.Uint32(dstWeight, d.Weight)
	ae.Uint32(dstUpper, 0)
	ae.Uint32(dstLower, 0)
	return nil
}

func family(a netip.Addr) uint16 {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// Services lists the namespace's services, in order, with their destinations.
func (c *Conn) Services() ([]Service, error) {
	answers, err := c.c.Execute(message(c.family, netlink.Request|netlink.Dump, cmdGetService, nil))
	if err != nil {
		return nil, fmt.Errorf("list IPVS's services: %w", err)
	}
	var out []Service
	for _, m := range answers {
		r, err := parse(m, attrService, (*record).service)
		if err != nil {
			return nil, fmt.Errorf("list IPVS's services: %w", err)
		}
		s := r.s
		s.Address = r.addr()
		if s.Destinations, err = c.destinations(s); err != nil {
			return nil, fmt.Errorf("list destinations of %s: %w", s, err)
		}
		out = append(out, s)
	}
	return sorted(out), nil
}

func (c *Conn) destinations(s Service) ([]Destination, error) {
	ae := netlink.NewAttributeEncoder()
	ae.Nested(attrService, s.encode)
	data, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	answers, err := c.c.Execute(message(c.family, netlink.Request|netlink.Dump, cmdGetDest, data))
	if err != nil {
		return nil, err
	}
	var out []Destination
	for _, m := range answers {
		r, err := parse(m, attrDest, (*record).destination)
		if err != nil {
			return nil, err
		}
		d := r.d
		d.Address = r.addr()
		out = append(out, d)
	}
	return out, nil
}

// record is what the attributes of a service or destination say, before it is
// known of which family it is.
type record struct {
	family  uint16
	address []byte
	s       Service
	d       Destination
}

// parse reads the attributes within one.
func parse(m netlink.Message, in uint16, each func(*record, *netlink.AttributeDecoder)) (*record, error) {
	r := &record{}
	err := attributes(m, func(ad *netlink.AttributeDecoder) {
		if ad.Type() == in {
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					each(r, ad)
				}
				return ad.Err()
			})
		}
	})
	return r, err
}

func (r *record) service(ad *netlink.AttributeDecoder) {
	switch ad.Type() {
	case svcFamily:
		r.family = ad.Uint16()
	case svcProtocol:
		r.s.Protocol = uint8(ad.Uint16())
	case svcAddress:
		r.address = ad.Bytes()
	case svcPort:
		r.s.Port = port(ad.Bytes())
	case svcMark:
		r.s.Mark = ad.Uint32()
	case svcTimeout:
		r.s.Tag = ad.Uint32()
	}
}

func (r *record) destination(ad *netlink.AttributeDecoder) {
	switch ad.Type() {
	case dstFamily:
		r.family = ad.Uint16()
	case dstAddress:
		r.address = ad.Bytes()
	case dstPort:
		r.d.Port = port(ad.Bytes())
	case dstWeight:
		r.d.Weight = ad.Uint32()
	case dstActive, dstPassive:
		r.d.Connections += ad.Uint32()
	}
}

func port(b []byte) uint16 {
	if len(b) < 2 {
		return 0
	}
	return binary.BigEndian.Uint16(b)
}

// addr is the address: the kernel gives room for IPv6 to those of IPv4, too.
func (r *record) addr() netip.Addr {
	size := 4
	if r.family == unix.AF_INET6 {
		size = 16
	}
	if len(r.address) < size {
		r.address = make([]byte, size)
	}
	a, _ := netip.AddrFromSlice(r.address[:size])
	return a
}
