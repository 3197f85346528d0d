// SPDX-License-Identifier: Apache-2.0

package overlay

import (
	"errors"
	"fmt"

	"skep/net/link"
	"skep/net/nft"
)

// segment is a network on this node. Whoever has the turn has it all, but for
// id, path and turn, which do not change.
type segment struct {
	id   string
	path string // where its namespace is pinned
	turn chan struct{}

	// gone: it has been removed, and is in no map any more.
	gone bool
	// net is what is wanted. After a restart it is what the record says, and
	// has no peers until Set has said who they are.
	net   *Network
	whole bool // Set has said who the peers are
	// dirty: the kernel is not as net says, as far as known.
	dirty bool
	// clashed: another device has had the VNI when it was asked for last.
	clashed bool

	// The connections to the namespace; nil while there is none.
	link *link.Conn
	nft  *nft.Conn
	// What the kernel is known to have.
	table nft.Table
	who   who
}

func newSegment(n *Network, path string) *segment {
	s := &segment{id: n.ID, path: path, turn: make(chan struct{}, 1), net: n, dirty: true}
	s.turn <- struct{}{}
	return s
}

// release gives the turn to the next.
func (s *segment) release() { s.turn <- struct{}{} }

// connect opens the connections; the thread is in the namespace.
func (s *segment) connect() (err error) {
	if s.link, err = link.Open(); err != nil {
		return err
	}
	s.nft, err = nft.Open()
	return err
}

// close closes the connections. While one is open the namespace does not end.
func (s *segment) close() error {
	var err error
	if s.nft != nil {
		err = s.nft.Close()
	}
	if s.link != nil {
		s.link.Close()
	}
	s.nft, s.link = nil, nil
	s.dirty = true
	return err
}

// raze removes all devices at once (the kernel would do so, some time after
// the namespace has ended, and until then nobody else could have the VNI), and
// then the namespace.
func (s *segment) raze() error {
	if s.link != nil {
		devices, err := s.link.Devices()
		if err != nil {
			return err
		}
		var names []string
		for name := range devices {
			if name != "lo" {
				names = append(names, name)
			}
		}
		if err := s.link.Remove(names...); err != nil {
			return err
		}
	}
	if err := errors.Join(s.close(), link.Remove(s.path)); err != nil {
		return fmt.Errorf("remove the namespace of network %s: %w", s.id, err)
	}
	return nil
}

// settings are what the namespace must not do although the kernel's defaults
// may say so, and what it must do if the node is a host on the network.
func (s *segment) settings() error {
	forward := "0"
	if s.net.Router != nil {
		forward = "1"
	}
	for _, set := range []struct{ name, value string }{
		// Frames that a bridge passes are no packets of this namespace.
		{"net/bridge/bridge-nf-call-iptables", "0"},
		{"net/bridge/bridge-nf-call-ip6tables", "0"},
		{"net/bridge/bridge-nf-call-arptables", "0"},
		// Devices have no address by themselves, and so nothing to send.
		{"net/ipv6/conf/default/disable_ipv6", "1"},
		{"net/ipv6/conf/all/forwarding", forward},
		{"net/ipv4/ip_forward", forward},
		// Replies may leave by another way than requests came.
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
	} {
		if err := optional(link.Sysctl(set.name, set.value)); err != nil {
			return err
		}
	}
	return nil
}

// bridgeSettings are those of the bridge as a host. Devices take the defaults
// when they are made, which may have been before.
func bridgeSettings() error {
	return errors.Join(
		link.Sysctl("net/ipv4/conf/"+bridgeName+"/rp_filter", "0"),
		link.Sysctl("net/ipv4/conf/"+bridgeName+"/send_redirects", "0"),
	)
}
