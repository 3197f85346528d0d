// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"

	"skep/net/link"
)

// difference is what has to be done to a namespace. It is empty if all is as
// it is to be.
type difference struct {
	// words say what is not right, but for the entries below.
	words []string
	// remove are devices that are wrong, or nobody's.
	remove []string
	// bridge and tunnel are to be made, or set up again.
	makeBridge, makeTunnel bool
	bridge, tunnel         bool
	table                  bool
	// join are ports to be made, settle are those to be set up again.
	join, settle []end
	// set and drop are entries of the tunnel's device; host* of the bridge.
	set, drop, hostSet, hostDrop []link.Entry
}

// size is how many things are not right.
func (d *difference) size() int {
	return len(d.words) + len(d.set) + len(d.drop) + len(d.hostSet) + len(d.hostDrop)
}

func (d *difference) say(format string, args ...any) {
	d.words = append(d.words, fmt.Sprintf(format, args...))
}

// compare is what leads from what is there to what is wanted. Without all
// peers, nobody who is there is superfluous.
func compare(want layout, people who, all bool, have observed) difference {
	var d difference
	d.compareBridge(want, have)
	d.compareTunnel(want, have)
	if !have.tabled || have.table.String() != want.table.String() {
		d.table = true
		d.say("the table of who may send what is not right")
	}
	d.comparePorts(want, have)
	on := func(device string, made bool) who {
		if made {
			return who{}
		}
		return have.who(device)
	}
	d.set, d.drop = on(tunnelName, d.makeTunnel).change(people)
	host := who{}
	if len(want.host) > 0 {
		host.at = people.at
	}
	d.hostSet, d.hostDrop = on(bridgeName, d.makeBridge).change(host)
	if !all {
		d.drop, d.hostDrop = nil, nil
	}
	return d
}

func (d *difference) compareBridge(want layout, have observed) {
	br, ok := have.devices[bridgeName]
	if !ok || br.Kind != want.bridge.Kind {
		d.makeBridge, d.bridge = true, true
		d.say("%s is missing", bridgeName)
		if ok {
			d.remove = append(d.remove, bridgeName)
		}
		return
	}
	if !br.Up || br.MTU != want.bridge.MTU || !bytes.Equal(br.MAC, want.bridge.MAC) || !sameAddresses(want, have.host) {
		d.bridge = true
		d.say("%s is not as it should be", bridgeName)
	}
}

// sameAddresses reports whether the bridge has the addresses that it is to
// have, and the one that comes with those of IPv6.
func sameAddresses(want layout, have []netip.Prefix) bool {
	set := func(list []netip.Prefix) map[netip.Prefix]bool {
		out := map[netip.Prefix]bool{}
		for _, a := range list {
			out[a] = true
		}
		return out
	}
	return maps.Equal(set(link.HostAddresses(want.bridge.MAC, want.host)), set(have))
}

func (d *difference) compareTunnel(want layout, have observed) {
	t, ok := have.devices[tunnelName]
	w := want.tunnel
	if ok && t.Vxlan != nil {
		w.MTU = t.Vxlan.MTU // may be changed
	}
	if !ok || t.Vxlan == nil || *t.Vxlan != w {
		d.makeTunnel, d.tunnel = true, true
		d.say("%s is missing", tunnelName)
		if ok {
			d.remove = append(d.remove, tunnelName)
		}
		return
	}
	if d.makeBridge || !t.Up || t.MTU != want.tunnel.MTU || t.Master != have.devices[bridgeName].Index || have.ports[t.Index] != tunnelTreatment() {
		d.tunnel = true
		d.say("%s is not as it should be", tunnelName)
	}
}

func (d *difference) comparePorts(want layout, have observed) {
	for _, name := range slices.Sorted(maps.Keys(have.devices)) {
		if _, ok := want.ports[name]; !ok && isPort(name) {
			d.remove = append(d.remove, name)
			d.say("port %s is nobody's", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.ports)) {
		e := want.ports[name]
		p, ok := have.devices[name]
		switch {
		case !ok && !have.homes[name]:
			// Its container is gone: there is nothing to connect.
		case !ok:
			d.join = append(d.join, e)
			d.say("port %s is missing", name)
		case d.makeBridge || !p.Up || p.MTU != want.bridge.MTU || p.Master != have.devices[bridgeName].Index ||
			have.ports[p.Index] != link.Treatment{} || !slices.Equal(have.stations(p), []link.MAC{link.MAC(e.MAC)}):
			d.settle = append(d.settle, e)
			d.say("port %s is not as it should be", name)
		}
	}
}

// isPort tells ports from what others put into the namespace.
func isPort(name string) bool { return portForm.MatchString(name) }

var portForm = regexp.MustCompile(`^p[0-9a-f]{8}$`)
