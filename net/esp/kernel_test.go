// SPDX-License-Identifier: Apache-2.0

package esp_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"skep/net/esp"
	"skep/net/link/linktest"
	"skep/net/link/umltest"
)

func TestMain(m *testing.M) { umltest.Main(m, linktest.Main) }

// TestInUML runs the tests of the kernel's part, which not every kernel has.
func TestInUML(t *testing.T) {
	umltest.Run(t, "^TestKernel", "veth", "esp4", "esp6", "xfrm_user", "gcm", "ctr", "seqiv", "ghash_generic", "aes_generic", "nfnetlink")
}

// TestProbe_SaysWhatTheKernelLacks runs where it lacks something, or else has it.
func TestProbe_SaysWhatTheKernelLacks(t *testing.T) {
	if err := esp.Probe(); err != nil && !strings.Contains(err.Error(), "the kernel ") {
		t.Errorf("got %v, want what the kernel lacks", err)
	}
}

const port = 4790

// node is a machine with the encryption and a socket on the port.
type node struct {
	*testing.T
	addr   netip.Addr
	within func(func() error)
	esp    *esp.ESP
	lost   int // how often it was told that it has another boot
	socket *net.UDPConn
}

func newNode(t *testing.T, addr netip.Addr, within func(func() error)) *node {
	t.Helper()
	n := &node{T: t, addr: addr, within: within}
	within(func() (err error) {
		if n.socket, err = net.ListenUDP("udp", &net.UDPAddr{IP: addr.AsSlice(), Port: port}); err != nil {
			return err
		}
		n.esp, err = esp.Open(esp.Config{
			Scope: "00abcd", Lost: func() { n.lost++ }, Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		return err
	})
	t.Cleanup(func() {
		if err := n.esp.Destroy(t.Context()); err != nil && t.Context().Err() == nil {
			t.Error(err)
		}
		n.esp.Close()
		_ = n.socket.Close()
	})
	return n
}

// pair is two nodes with a cable; the first is this machine.
func pair(t *testing.T) (a, b *node, cable string) {
	t.Helper()
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	host := linktest.NewHost(t)
	a = newNode(t, host.Gateway, func(f func() error) {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	})
	b = newNode(t, host.Address, func(f func() error) { host.Within(t, f) })
	return a, b, fmt.Sprintf("cable%d", host.Gateway.As4()[2])
}

func (n *node) set(out *uint32, peer *node, in ...uint32) {
	n.Helper()
	p := esp.Peer{Address: peer.addr}
	for _, spi := range in {
		p.In = append(p.In, key(spi))
	}
	if out != nil {
		p.Out = new(key(*out))
	}
	if err := n.esp.Set(n.Context(), esp.State{Port: port, Local: n.addr, Peers: []esp.Peer{p}}); err != nil {
		n.Fatal(err)
	}
}

// both sets keys between two nodes: from a to b, and from b to a.
func both(a, b *node, ab, ba uint32) {
	a.set(&ab, b, ba)
	b.set(&ba, a, ab)
}

func (n *node) send(to *node, text string) error {
	_, err := n.socket.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(to.addr, port))
	return err
}

// receive is the next packet, or empty if none comes for a while.
func (n *node) receive() string {
	n.Helper()
	if err := n.socket.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		n.Fatal(err)
	}
	b := make([]byte, 2048)
	got, err := n.socket.Read(b)
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		n.Fatal(err)
	}
	return string(b[:got])
}

func (n *node) passes(to *node, text string) {
	n.Helper()
	if err := n.send(to, text); err != nil {
		n.Fatal(err)
	}
	if got := to.receive(); got != text {
		n.Errorf("%s to %s: got %q, want %q", n.addr, to.addr, got, text)
	}
}

func (n *node) fails(to *node, why string) {
	n.Helper()
	// A policy may refuse at once, or later drop in silence.
	if err := n.send(to, why); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EAGAIN) {
		n.Fatal(err)
	}
	if got := to.receive(); got != "" {
		n.Errorf("%s to %s: %q arrived", n.addr, to.addr, got)
	}
}

// sniffer sees what goes over a cable.
type sniffer struct {
	*testing.T
	fd int
}

func sniff(t *testing.T, device string) *sniffer {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(all))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}); err != nil {
		t.Fatal(err)
	}
	return &sniffer{t, fd}
}

// seen is how many frames there were: in ESP, and that hold the text.
func (s *sniffer) seen(text string) (encrypted, plain int) {
	s.Helper()
	b := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(s.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) {
			return encrypted, plain
		}
		if err != nil {
			s.Fatal(err)
		}
		if n > 23 && b[12] == 8 && b[13] == 0 && b[23] == unix.IPPROTO_ESP {
			encrypted++
		}
		if bytes.Contains(b[:n], []byte(text)) {
			plain++
		}
	}
}

func TestKernel_Probe(t *testing.T) {
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	if err := esp.Probe(); err != nil {
		t.Error(err)
	}
}

func TestKernel_NothingIsSeenOnTheWire(t *testing.T) {
	a, b, cable := pair(t)
	wire := sniff(t, cable)
	a.passes(b, "before there is a state all is clear")
	if e, c := wire.seen("all is clear"); e != 0 || c != 1 {
		t.Fatalf("the sniffer saw %d frames in ESP and %d in clear, want 0 and 1", e, c)
	}
	both(a, b, 0x201, 0x102)
	for range 20 {
		a.passes(b, "nobody is to read this")
		b.passes(a, "nor the answer: nobody is to read this")
	}
	if e, c := wire.seen("nobody is to read"); e != 40 || c != 0 {
		t.Errorf("%d frames in ESP and %d in clear, want 40 and 0", e, c)
	}
}

func TestKernel_ClearTextIsDropped(t *testing.T) {
	a, b, cable := pair(t)
	both(a, b, 0x201, 0x102)
	a.passes(b, "well")
	if err := b.esp.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.fails(a, "clear text of a peer")
	a.fails(b, "encrypted for one who has no key")
	stranger := linktest.NewHost(t)
	c := newNode(t, stranger.Address, func(f func() error) { stranger.Within(t, f) })
	c.fails(a, "clear text of a stranger")

	// With a state and no peers nothing passes in either direction, and nothing is sent.
	if err := a.esp.Set(t.Context(), esp.State{Port: port, Local: a.addr}); err != nil {
		t.Fatal(err)
	}
	wire := sniff(t, cable)
	b.fails(a, "to a network that has no peers yet")
	a.fails(b, "from a network that has no peers yet")
	if _, c := wire.seen("from a network"); c != 0 {
		t.Errorf("%d frames left in clear", c)
	}
	if err := a.esp.Set(t.Context(), esp.State{}); err != nil {
		t.Fatal(err)
	}
	b.passes(a, "the port is free again")
}

// TestKernel_RotationLosesNothing changes the keys under a stream of packets, in
// the managers' steps.
func TestKernel_RotationLosesNothing(t *testing.T) {
	a, b, _ := pair(t)
	const packets = 400
	ab, ba := uint32(0x201), uint32(0x102)
	both(a, b, ab, ba)
	lost := 0
	for i := range packets {
		next := uint32(i/100)<<16 + 0x1000
		switch i % 100 {
		case 20: // add, at one and then at the other
			a.set(&ab, b, ba, ba+next)
		case 30:
			b.set(&ba, a, ab, ab+next)
		case 50: // use
			b.set(new(ba+next), a, ab, ab+next)
		case 60:
			a.set(new(ab+next), b, ba, ba+next)
		case 80: // remove
			ab, ba = ab+next, ba+next
			a.set(&ab, b, ba)
		case 90:
			b.set(&ba, a, ab)
		}
		from, to := a, b
		if i%2 == 1 {
			from, to = b, a
		}
		if err := from.send(to, fmt.Sprint(i)); err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if got := to.receive(); got != fmt.Sprint(i) {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("lost %d of %d packets", lost, packets)
	}
}

func TestKernel_CheckRepairs(t *testing.T) {
	a, b, _ := pair(t)
	both(a, b, 0x201, 0x102)
	repaired := func(want int) {
		t.Helper()
		if got, err := a.esp.Check(t.Context()); err != nil || got != want {
			t.Errorf("repaired %d things (%v), want %d", got, err, want)
		}
	}
	repaired(0)
	if err := netlink.XfrmPolicyFlush(); err != nil {
		t.Fatal(err)
	}
	repaired(6) // four blocks, in and out
	a.passes(b, "again")
	if err := netlink.XfrmStateDel(&netlink.XfrmState{Dst: a.addr.AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Spi: 0x102}); err != nil {
		t.Fatal(err)
	}
	repaired(1) // the key to receive with
	repaired(0)
	a.passes(b, "and again")
	// What is ours and not wanted goes; what is not ours stays.
	other := &netlink.XfrmState{
		Src: net.IPv4(192, 0, 2, 1), Dst: net.IPv4(192, 0, 2, 2), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT,
		Spi: 0x999, Reqid: 0x5e00abcd, Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 20), ICVLen: 128},
	}
	foreign := *other
	foreign.Spi, foreign.Reqid = 0x998, 7
	if err := errors.Join(netlink.XfrmStateAdd(other), netlink.XfrmStateAdd(&foreign)); err != nil {
		t.Fatal(err)
	}
	repaired(1)
	if err := netlink.XfrmStateDel(&foreign); err != nil {
		t.Errorf("what is not ours is gone: %v", err)
	}
}

// A key for sending that was lost is not begun anew: the other end would take all
// that comes for replays, and counters must not repeat.
func TestKernel_ALostKeyIsNotBegunAnew(t *testing.T) {
	a, b, _ := pair(t)
	both(a, b, 0x201, 0x102)
	a.passes(b, "before")
	boot := a.esp.Boot()
	if err := netlink.XfrmStateFlush(netlink.XFRM_PROTO_ESP); err != nil {
		t.Fatal(err)
	}
	for range 2 { // once to find out, and once to leave it
		if _, err := a.esp.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
		if again := a.esp.Boot(); again == boot || a.lost != 1 {
			t.Errorf("boot %s after %s, told %d times", again, boot, a.lost)
		}
		a.fails(b, "with a key that counts from the start")
	}
	both(a, b, 0x301, 0x102)
	a.passes(b, "with keys for the new boot")
	b.passes(a, "and back")
}

// TestKernel_CountsOn: after 2^32 packets an SA without extended sequence
// numbers ends.
func TestKernel_CountsOn(t *testing.T) {
	a, b, _ := pair(t)
	both(a, b, 0x201, 0x102)
	a.passes(b, "first")
	const almost = 0xfffffff0
	jump := func(n *node, spi uint32, dst netip.Addr, out, in uint32) {
		n.within(func() error { return count(spi, dst, out, in) })
	}
	jump(a, 0x201, b.addr, almost, 0)
	jump(b, 0x201, b.addr, 0, almost)
	for i := range 40 {
		a.passes(b, fmt.Sprintf("packet %d", i))
	}
}

// count sets how many packets an SA has sent or received
// (XFRM_MSG_NEWAE with XFRMA_REPLAY_ESN_VAL).
func count(spi uint32, dst netip.Addr, out, in uint32) error {
	req := nl.NewNetlinkRequest(nl.XFRM_MSG_NEWAE, unix.NLM_F_REPLACE|unix.NLM_F_ACK)
	id := make([]byte, 48) // struct xfrm_aevent_id
	copy(id, dst.AsSlice())
	binary.BigEndian.PutUint32(id[16:], spi)
	binary.NativeEndian.PutUint16(id[20:], unix.AF_INET)
	id[22] = unix.IPPROTO_ESP
	req.AddData(raw(id))
	const window = 1024
	esn := binary.NativeEndian.AppendUint32(nil, window/32) // words of the bitmap
	for _, v := range []uint32{out, in, 0, 0, window} {     // oseq, seq, oseq_hi, seq_hi, replay_window
		esn = binary.NativeEndian.AppendUint32(esn, v)
	}
	req.AddData(nl.NewRtAttr(nl.XFRMA_REPLAY_ESN_VAL, append(esn, make([]byte, window/8)...)))
	_, err := req.Execute(unix.NETLINK_XFRM, 0)
	return err
}

// raw is a part of a message as it is.
type raw []byte

func (r raw) Len() int          { return len(r) }
func (r raw) Serialize() []byte { return r }

func TestKernel_ABootOutlivesTheProcess(t *testing.T) {
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	c := esp.Config{Scope: "00abcd", File: filepath.Join(t.TempDir(), "boot"), Logger: slog.New(slog.DiscardHandler)}
	var boots [2]string
	for i := range boots {
		e, err := esp.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		boots[i] = e.Boot()
		e.Close()
	}
	if boots[0] == "" || boots[0] != boots[1] {
		t.Errorf("boots %q, want one", boots)
	}
}
