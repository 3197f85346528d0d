// SPDX-License-Identifier: Apache-2.0

package esp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The kernel's name of the cipher, and the length of the check value.
const (
	algorithm = "rfc4106(gcm(aes))"
	icvBits   = 128
)

// Probe is nil if the kernel can encrypt as this package does. It tries in a
// network namespace that it throws away.
func Probe() error {
	failed := make(chan error, 1)
	// The thread ends with the goroutine, because it is not unlocked, and takes
	// the namespace along.
	go func() {
		runtime.LockOSThread()
		failed <- probe()
	}()
	return <-failed
}

func probe() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("probe encryption: make network namespace: %w", err)
	}
	h, err := netlink.NewHandle(unix.NETLINK_XFRM)
	if err != nil {
		return fmt.Errorf("the kernel has no IPsec (xfrm): %w", err)
	}
	defer h.Close()
	here, there := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	p, err := State{Port: 4790, Local: here, Peers: []Peer{{
		Address: there, Out: &Key{SPI: 256, Material: make([]byte, materialSize)},
	}}}.plan(1)
	if err != nil {
		return err
	}
	for _, s := range diff(plan{}, p) {
		if err := s.do(h); err != nil {
			return fmt.Errorf("the kernel lacks IPsec ESP with %s: %w", algorithm, err)
		}
	}
	return nil
}

// read is what the kernel has of ours.
func (e *ESP) read() (plan, error) {
	var p plan
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		policies, err := e.h.XfrmPolicyList(family)
		if err != nil {
			return plan{}, fmt.Errorf("list policies: %w", err)
		}
		for i := range policies {
			if x, ok := e.ours(&policies[i]); ok {
				p.policies = append(p.policies, x)
			}
		}
	}
	states, err := e.h.XfrmStateList(netlink.FAMILY_ALL)
	if err != nil {
		return plan{}, fmt.Errorf("list states: %w", err)
	}
	for i := range states {
		if s := &states[i]; s.Reqid == e.reqid && s.Proto == netlink.XFRM_PROTO_ESP {
			p.states = append(p.states, readState(s))
		}
	}
	slices.SortFunc(p.policies, policy.compare)
	slices.SortFunc(p.states, state.compare)
	return p, nil
}

// ours reads a policy, if it is one of this node's.
func (e *ESP) ours(p *netlink.XfrmPolicy) (policy, bool) {
	out := policy{
		dir: p.Dir, src: prefix(p.Src), dst: prefix(p.Dst), port: uint16(p.DstPort),
		block: p.Action == netlink.XFRM_POLICY_BLOCK, reqid: e.reqid,
	}
	if out.block {
		return out, p.Priority == out.priority()
	}
	if len(p.Tmpls) != 1 || p.Tmpls[0].Reqid != e.reqid {
		return policy{}, false
	}
	out.spi = uint32(p.Tmpls[0].Spi)
	return out, true
}

func readState(s *netlink.XfrmState) state {
	out := state{src: addr(s.Src), dst: addr(s.Dst), spi: uint32(s.Spi), reqid: s.Reqid}
	if a := s.Aead; a != nil && a.Name == algorithm && a.ICVLen == icvBits && s.Mode == netlink.XFRM_MODE_TRANSPORT {
		out.material = string(a.Key)
	}
	return out
}

// do makes the change. What is gone already need not be deleted.
func (s step) do(h *netlink.Handle) error {
	var err error
	switch {
	case s.policy != nil && s.verb == "delete":
		err = h.XfrmPolicyDel(s.policy.kernel())
	case s.policy != nil:
		err = h.XfrmPolicyUpdate(s.policy.kernel())
	case s.verb == "delete":
		err = h.XfrmStateDel(s.state.kernel())
	default:
		err = h.XfrmStateAdd(s.state.kernel())
	}
	if s.verb == "delete" && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH)) {
		return nil
	}
	return err
}

func (p *policy) priority() int {
	if p.block {
		return priorityBlock | p.reqid&0xffffff
	}
	return priorityPeer
}

func (p *policy) kernel() *netlink.XfrmPolicy {
	out := &netlink.XfrmPolicy{
		Src: ipNet(p.src), Dst: ipNet(p.dst), Proto: unix.IPPROTO_UDP, DstPort: int(p.port), Dir: p.dir, Priority: p.priority(),
	}
	if p.block {
		out.Action = netlink.XFRM_POLICY_BLOCK
		return out
	}
	out.Tmpls = []netlink.XfrmPolicyTmpl{{
		Src: p.src.Addr().AsSlice(), Dst: p.dst.Addr().AsSlice(),
		Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Reqid: p.reqid, Spi: int(p.spi),
	}}
	return out
}

func (s *state) kernel() *netlink.XfrmState {
	return &netlink.XfrmState{
		Src: s.src.AsSlice(), Dst: s.dst.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT,
		Spi: int(s.spi), Reqid: s.reqid, ReplayWindow: window, ESN: true,
		Aead: &netlink.XfrmStateAlgo{Name: algorithm, Key: []byte(s.material), ICVLen: icvBits},
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func prefix(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(addr(n.IP), bits)
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
