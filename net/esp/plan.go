// SPDX-License-Identifier: Apache-2.0

package esp

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// The priorities of policies: the kernel takes the smallest that matches, so a
// peer's comes before the block.
// A block names no request: it is told by its priority, which holds the scope.
const (
	priorityPeer  = 1000
	priorityBlock = 0x7e << 24
)

// window is how far behind the newest a packet may be and still be taken.
const window = 1024

const materialSize = 16 + 4

// plan is what the kernel is to hold. Both are in order.
type plan struct {
	policies []policy
	states   []state
}

// policy is what becomes of packets to the port in one direction. Its key is
// all but spi and block.
type policy struct {
	dir      netlink.Dir
	src, dst netip.Prefix
	port     uint16
	block    bool
	reqid    int
	spi      uint32 // of the only state that will do; 0 means any with the reqid
}

// state is a key in use in one direction. Its key is dst and spi.
type state struct {
	src, dst netip.Addr
	spi      uint32
	reqid    int
	material string
}

func (p policy) compare(o policy) int {
	return cmp.Or(cmp.Compare(p.dir, o.dir), p.dst.Compare(o.dst), p.src.Compare(o.src), cmp.Compare(p.port, o.port))
}

func (s state) compare(o state) int {
	return cmp.Or(s.dst.Compare(o.dst), cmp.Compare(s.spi, o.spi))
}

// anywhere are all addresses of both families.
func anywhere() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)}
}

// plan is what the state means for the kernel.
func (s State) plan(reqid int) (plan, error) {
	if s.Port == 0 {
		return plan{}, nil
	}
	var p plan
	for _, all := range anywhere() {
		p.policies = append(p.policies,
			policy{dir: netlink.XFRM_DIR_IN, src: all, dst: all, port: s.Port, block: true, reqid: reqid},
			policy{dir: netlink.XFRM_DIR_OUT, src: all, dst: all, port: s.Port, block: true, reqid: reqid})
	}
	var errs []error
	for _, peer := range s.Peers {
		errs = append(errs, p.add(s, peer, reqid))
	}
	slices.SortFunc(p.policies, policy.compare)
	slices.SortFunc(p.states, state.compare)
	for i := 1; i < len(p.states); i++ {
		if p.states[i].compare(p.states[i-1]) == 0 {
			errs = append(errs, fmt.Errorf("two keys to %s have the SPI %#x", p.states[i].dst, p.states[i].spi))
		}
	}
	return p, errors.Join(errs...)
}

func (p *plan) add(s State, peer Peer, reqid int) error {
	local, remote := s.Local.Unmap(), peer.Address.Unmap()
	if !local.IsValid() || !remote.IsValid() || local.Is4() != remote.Is4() || local == remote {
		return fmt.Errorf("peer %s: no address that %s can have a tunnel to", peer.Address, s.Local)
	}
	host := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	if len(peer.In) > 0 {
		p.policies = append(p.policies, policy{dir: netlink.XFRM_DIR_IN, src: host(remote), dst: host(local), port: s.Port, reqid: reqid})
	}
	keys := slices.Clone(peer.In)
	if peer.Out != nil {
		keys = append(keys, *peer.Out)
		p.policies = append(p.policies, policy{
			dir: netlink.XFRM_DIR_OUT, src: host(local), dst: host(remote), port: s.Port, reqid: reqid, spi: peer.Out.SPI,
		})
	}
	for i, k := range keys {
		if len(k.Material) != materialSize || k.SPI < 256 {
			return fmt.Errorf("peer %s: a key of %d bytes with the SPI %#x: want %d bytes and one from 0x100", peer.Address, len(k.Material), k.SPI, materialSize)
		}
		src, dst := remote, local
		if i == len(peer.In) {
			src, dst = local, remote
		}
		p.states = append(p.states, state{src: src, dst: dst, spi: k.SPI, reqid: reqid, material: string(k.Material)})
	}
	return nil
}

// step is one change of the kernel.
type step struct {
	verb   string // add, update or delete
	policy *policy
	state  *state
}

// diff is what leads from one plan to the other, in an order in which nothing
// passes in clear and nothing that is on its way is lost: blocks, keys,
// policies of peers, and then what is no longer wanted in the opposite order.
func diff(have, want plan) []step {
	var steps, last []step
	policies := func(block bool) {
		for i, w := range want.policies {
			at, ok := slices.BinarySearchFunc(have.policies, w, policy.compare)
			switch {
			case w.block != block:
			case !ok:
				steps = append(steps, step{verb: "add", policy: &want.policies[i]})
			case have.policies[at] != w:
				steps = append(steps, step{verb: "update", policy: &want.policies[i]})
			}
		}
		for i, h := range have.policies {
			if _, ok := slices.BinarySearchFunc(want.policies, h, policy.compare); !ok && h.block == block {
				last = append(last, step{verb: "delete", policy: &have.policies[i]})
			}
		}
	}
	policies(true)
	gone := last
	last = nil
	for i, w := range want.states {
		at, ok := slices.BinarySearchFunc(have.states, w, state.compare)
		if ok && have.states[at] == w {
			continue
		}
		if ok {
			steps = append(steps, step{verb: "delete", state: &have.states[at]})
		}
		steps = append(steps, step{verb: "add", state: &want.states[i]})
	}
	policies(false)
	steps = append(steps, last...)
	for i, h := range have.states {
		if _, ok := slices.BinarySearchFunc(want.states, h, state.compare); !ok {
			steps = append(steps, step{verb: "delete", state: &have.states[i]})
		}
	}
	return append(steps, gone...)
}

// String prints the plan in the manner of the ip command, without keys.
func (p plan) String() string {
	var b bytes.Buffer
	for _, x := range p.policies {
		fmt.Fprintln(&b, x)
	}
	for _, x := range p.states {
		fmt.Fprintln(&b, x)
	}
	return b.String()
}

func (p policy) String() string {
	head := fmt.Sprintf("policy src %s dst %s proto udp dport %d %s", p.src, p.dst, p.port, p.dir)
	if p.block {
		return head + " action block"
	}
	tmpl := fmt.Sprintf("%s tmpl proto esp mode transport reqid %#x", head, p.reqid)
	if p.spi != 0 {
		tmpl += fmt.Sprintf(" spi %#x", p.spi)
	}
	return tmpl
}

func (s state) String() string {
	return fmt.Sprintf("state src %s dst %s proto esp spi %#x reqid %#x mode transport replay-window %d flag esn aead %s [sealed] %d",
		s.src, s.dst, s.spi, s.reqid, window, algorithm, icvBits)
}

func (s step) String() string {
	if s.policy != nil {
		return s.verb + " " + s.policy.String()
	}
	return s.verb + " " + s.state.String()
}
