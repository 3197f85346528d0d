// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"skep/net/link"
	"skep/net/nft"
)

// observed is what a network's namespace holds.
type observed struct {
	devices map[string]link.Device
	ports   map[int]link.Treatment
	entries map[int][]link.Entry
	host    []netip.Prefix
	table   nft.Table
	tabled  bool
	// homes are the ports whose container's namespace is there.
	homes map[string]bool
}

// optional forgives that this kernel has no such setting.
func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *segment) observe(table string, ends []end) (observed, error) {
	o := observed{homes: map[string]bool{}}
	for _, e := range ends {
		o.homes[e.Port] = link.Pinned(e.Namespace)
	}
	if s.link == nil {
		return o, nil
	}
	var err error
	if o.devices, err = s.link.Devices(); err != nil {
		return o, err
	}
	if o.ports, err = s.link.Treatments(); err != nil {
		return o, err
	}
	if o.entries, err = s.link.Entries(); err != nil {
		return o, err
	}
	if br, ok := o.devices[bridgeName]; ok {
		if o.host, err = s.link.Addresses(br); err != nil {
			return o, err
		}
	}
	o.table, o.tabled, err = s.nft.Read(nft.Bridge, table)
	return o, err
}

// who reads the tables of a device; the bridge has no forwards.
func (o observed) who(device string) who {
	d, ok := o.devices[device]
	w := who{map[netip.Addr]link.MAC{}, map[link.MAC]netip.Addr{}}
	if !ok {
		return w
	}
	for _, e := range o.entries[d.Index] {
		switch {
		case e.Table == link.Neighbours:
			w.at[e.Address] = e.MAC
		case e.Table == link.Forwards && device == tunnelName:
			w.via[e.MAC] = e.Address
		}
	}
	return w
}

// stations are those that the bridge knows behind a port.
func (o observed) stations(port link.Device) []link.MAC {
	var out []link.MAC
	for _, e := range o.entries[port.Index] {
		if e.Table == link.Stations {
			out = append(out, e.MAC)
		}
	}
	return out
}

// String prints it in the manner of the ip, bridge and nft commands. What the
// kernel chooses by chance or in order of making is left out.
func (o observed) String() string {
	var b strings.Builder
	index := map[int]string{}
	for _, d := range o.devices {
		index[d.Index] = d.Name
	}
	for _, name := range slices.Sorted(maps.Keys(o.devices)) {
		d := o.devices[name]
		if name == "lo" {
			continue
		}
		fmt.Fprintf(&b, "link %s type %s mtu %d%s", name, d.Kind, d.MTU, map[bool]string{true: " up"}[d.Up])
		if v := d.Vxlan; v != nil {
			fmt.Fprintf(&b, " id %d dstport %d local %s%s%s", v.VNI, v.Port, v.Local,
				map[bool]string{false: " nolearning"}[v.Learns], map[bool]string{false: " proxy"}[v.Mute])
		}
		if name == bridgeName {
			fmt.Fprintf(&b, " address %s", d.MAC)
		}
		if d.Master != 0 {
			t := o.ports[d.Index]
			fmt.Fprintf(&b, " master %s learning %t flood %t mcast_flood %t bcast_flood %t", index[d.Master], t.Learn, t.Unknown, t.Multicast, t.Broadcast)
		}
		b.WriteString("\n")
		if name == bridgeName {
			for _, a := range o.host {
				fmt.Fprintf(&b, "\taddress %s\n", a)
			}
		}
		var lines []string
		for _, e := range o.entries[d.Index] {
			if e.Table == link.Forwards && name != tunnelName {
				continue // the kernel's own for the groups that a device is in
			}
			lines = append(lines, "\t"+e.String()+"\n")
		}
		slices.Sort(lines)
		b.WriteString(strings.Join(lines, ""))
	}
	if o.tabled {
		b.WriteString(o.table.String())
	}
	return b.String()
}
