package nodetest

import (
	"fmt"
	"net/netip"

	"skep/net/link"
)

// Forget takes what leads to an address of a network of the swarm, which is
// named by its ID, out of the node's kernel, without the node's knowledge.
func (n *Node) Forget(network string, addr netip.Addr) error {
	path := n.Path("data", "run", "overlay", "netns", network[:12])
	return n.Do(func() error { return within(path, func() error { return forget(addr) }) })
}

func forget(addr netip.Addr) error {
	return dropEntries(func(all []link.Entry) ([]link.Entry, error) {
		drop := leading(all, addr)
		if len(drop) < 2 {
			return nil, fmt.Errorf("what leads to %s is %v", addr, drop)
		}
		return drop, nil
	})
}

// dropEntries deletes some of the entries of the tunnel of this thread's
// namespace: those that are chosen of all.
func dropEntries(choose func(all []link.Entry) ([]link.Entry, error)) error {
	conn, err := link.Open()
	if err != nil {
		return err
	}
	defer conn.Close()
	tunnel, _, err := conn.Device("vxlan0")
	if err != nil {
		return err
	}
	all, err := conn.Entries()
	if err != nil {
		return err
	}
	drop, err := choose(all[tunnel.Index])
	if err != nil {
		return err
	}
	return conn.Program(tunnel.Index, nil, drop)
}

// leading are the entries of an address and of the station that is there.
func leading(all []link.Entry, addr netip.Addr) (list []link.Entry) {
	for _, e := range all {
		if e.Table != link.Neighbours || e.Address != addr {
			continue
		}
		list = append(list, e)
		for _, f := range all {
			if f.Table == link.Forwards && f.MAC == e.MAC {
				list = append(list, f)
			}
		}
	}
	return list
}
