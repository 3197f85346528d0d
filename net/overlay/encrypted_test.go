// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"skep/net/esp"
	"skep/net/link/linktest"
	"skep/net/link/umltest"
	"skep/net/overlay"
)

// encryptedPort is the one beside that of frames in clear.
const encryptedPort = 4790

// sealed is a node whose frames to encryptedPort are encrypted.
type sealed struct {
	*node
	esp *esp.ESP
}

func (n *sealed) keys(t *testing.T, peer *sealed, out uint32, in ...uint32) {
	t.Helper()
	key := func(spi uint32) esp.Key { return esp.Key{SPI: spi, Material: bytes.Repeat([]byte{byte(spi >> 4)}, 20)} }
	p := esp.Peer{Address: peer.Address, Out: new(key(out))}
	for _, spi := range in {
		p.In = append(p.In, key(spi))
	}
	if err := n.esp.Set(t.Context(), esp.State{Port: encryptedPort, Local: n.Address, Peers: []esp.Peer{p}}); err != nil {
		t.Fatal(err)
	}
}

// vault is web, encrypted.
func vault(n *sealed, peers ...overlay.Peer) *overlay.Network {
	v := web(n.node, peers...)
	v.ID, v.VNI, v.Port, v.MTU = "vault", 5000, encryptedPort, 1404
	return v
}

// bank is two nodes with a container each on the network vault, c1 and c2, and
// one each on web, which is in clear.
type bank struct {
	n1, n2         *sealed
	c1, c2, w1, w2 *box
}

func newBank(t *testing.T, sw *linktest.Switch) bank {
	t.Helper()
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML_Encrypted")
	}
	open := func() *sealed {
		n := &sealed{node: newNode(t, sw)}
		n.Within(t, func() (err error) {
			n.esp, err = esp.Open(esp.Config{Scope: "abcdef", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
			return err
		})
		t.Cleanup(n.esp.Close)
		return n
	}
	n1, n2 := open(), open()
	n1.keys(t, n2, 0x1010, 0x2010)
	n2.keys(t, n1, 0x2010, 0x1010)
	n1.set(t, vault(n1), web(n1.node))
	n2.set(t, vault(n2), web(n2.node))
	b := bank{
		n1: n1, n2: n2,
		c1: n1.attach(t, "c1", "vault", "10.0.9.5/24", "fd00:9::5/64"), c2: n2.attach(t, "c2", "vault", "10.0.9.6/24", "fd00:9::6/64"),
		w1: n1.attach(t, "w1", webID, "10.0.9.5/24"), w2: n2.attach(t, "w2", webID, "10.0.9.6/24"),
	}
	n1.set(t, vault(n1, b.c2.peer()), web(n1.node, b.w2.peer()))
	n2.set(t, vault(n2, b.c1.peer()), web(n2.node, b.w1.peer()))
	serve(t, b.c2)
	serve(t, b.w2)
	return b
}

func TestInUML_Encrypted(t *testing.T) {
	if umltest.Inside() {
		t.Skip("is in user-mode Linux")
	}
	umltest.Run(t, "^TestEncrypted_", "vxlan", "veth", "bridge", "nf_tables", "esp4", "xfrm_user", "gcm", "ctr", "seqiv")
}

// secret is what nobody on the way may read.
const secret = "what the containers of the vault say to each other"

// talk sends the secret as often, and returns how often it came back.
func talk(t *testing.T, from *box, to netip.Addr, times int, between func(i int)) (back int) {
	t.Helper()
	c, err := dial(t, from, "udp", to, patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	b := make([]byte, 200)
	for i := range times {
		between(i)
		text := fmt.Sprint(secret, i)
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(b); err == nil && string(b[:n]) == text {
			back++
		}
	}
	return back
}

// seen counts the frames that came over a wire: encrypted ones, and those in
// which the secret is to be read.
func (w *wire) seen(t *testing.T) (encrypted, read int) {
	t.Helper()
	b := make([]byte, 65536)
	for {
		n, _, err := unix.Recvfrom(w.fd, b, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			return encrypted, read
		}
		if err != nil {
			t.Fatal(err)
		}
		if n > 23 && binary.BigEndian.Uint16(b[12:]) == unix.ETH_P_IP && b[23] == unix.IPPROTO_ESP {
			encrypted++
		}
		if bytes.Contains(b[:n], []byte(secret)) {
			read++
		}
	}
}

func TestEncrypted_NobodyReads(t *testing.T) {
	b := newBank(t, linktest.NewSwitch(t))
	cable := tap(t, b.n2)
	if back := talk(t, b.c1, b.c2.addrs()[0], 50, func(int) {}); back != 50 {
		t.Errorf("%d of 50 came back", back)
	}
	if e, r := cable.seen(t); e != 100 || r != 0 {
		t.Errorf("%d frames were encrypted and %d to be read, want 100 and 0", e, r)
	}
	for _, a := range b.c2.addrs() { // whatever their size
		reach(t, b.c1, "tcp", a, 1<<18)
		reach(t, b.c1, "udp", a, 9000)
	}
	// A network in clear beside it is in clear.
	_, _ = cable.seen(t)
	if back := talk(t, b.w1, b.w2.addrs()[0], 5, func(int) {}); back != 5 {
		t.Errorf("%d of 5 came back on the network in clear", back)
	}
	if _, r := cable.seen(t); r != 10 {
		t.Errorf("%d frames were to be read on the network in clear, want 10", r)
	}
}

func TestEncrypted_RotationLosesNothing(t *testing.T) {
	b := newBank(t, linktest.NewSwitch(t))
	n1, n2 := b.n1, b.n2
	out, in := uint32(0x1010), uint32(0x2010) // of n1
	rotate := func(i int) {
		next := uint32(i/100+1) << 16
		switch i % 100 {
		case 20: // add
			n1.keys(t, n2, out, in, in+next)
		case 30:
			n2.keys(t, n1, in, out, out+next)
		case 50: // use
			n2.keys(t, n1, in+next, out+next, out)
		case 60:
			n1.keys(t, n2, out+next, in+next, in)
		case 80: // remove
			out, in = out+next, in+next
			n1.keys(t, n2, out, in)
		case 90:
			n2.keys(t, n1, in, out)
		}
	}
	if back := talk(t, b.c1, b.c2.addrs()[0], 400, rotate); back != 400 {
		t.Errorf("%d of 400 came back", back)
	}
}

// TestEncrypted_FramesInClearAreDropped: whoever sends them, and whatever they say.
func TestEncrypted_FramesInClearAreDropped(t *testing.T) {
	sw := linktest.NewSwitch(t)
	b := newBank(t, sw)
	stranger := sw.Machine(t)
	inject := func(from place, port uint16, vni uint32, src, dst *box) {
		t.Helper()
		inner := frame(dst.MAC, src.MAC, unix.ETH_P_IP, udp4(src.addrs()[0], dst.addrs()[0]))
		vxlan := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
		from.Within(t, func() error {
			c, err := net.Dial("udp", netip.AddrPortFrom(b.n2.Address, port).String())
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_, err = c.Write(append(vxlan, inner...))
			return err
		})
	}
	arrives := func(at *box) func() bool {
		w := tap(t, at)
		return func() bool {
			return w.await(t, 300*time.Millisecond, func(f []byte) bool { return bytes.Contains(f, []byte(marked)) })
		}
	}
	inClear := arrives(b.w2)
	inject(stranger, 4789, 4097, b.w1, b.w2)
	if !inClear() {
		t.Error("not even a network in clear takes these frames: they prove nothing")
	}
	guarded := arrives(b.c2)
	inject(stranger, encryptedPort, 5000, b.c1, b.c2)
	if guarded() {
		t.Error("a stranger's frame in clear arrived")
	}
	// A peer that does not encrypt, because it has forgotten how to.
	if err := b.n1.esp.Destroy(t.Context()); err != nil {
		t.Fatal(err)
	}
	inject(b.n1, encryptedPort, 5000, b.c1, b.c2)
	if guarded() {
		t.Error("a peer's frame in clear arrived")
	}
}
