package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// maxStreams is how many connections are served at once. Each may make the
	// node decode some megabytes.
	maxStreams = 16
	// maxPacket is more than any node sends.
	maxPacket = 64 << 10
	queue     = 256
)

var errNoPeer = errors.New("not the address of a member")

// transport is one UDP and one TCP port on the node's own address, which hears
// and reaches nobody but members.
type transport struct {
	own     netip.AddrPort
	peers   func() *peers
	udp     *net.UDPConn
	tcp     *net.TCPListener
	packets chan *memberlist.Packet // as UDP does, what comes too fast is dropped
	streams chan net.Conn
	slots   chan struct{} // holds a value for each stream that is being served
	done    <-chan struct{}
	cancel  context.CancelFunc
	dial    func(addr netip.AddrPort, timeout time.Duration) (net.Conn, error)
	running sync.WaitGroup
}

func listen(ctx context.Context, own netip.AddrPort, peers func() *peers) (*transport, error) {
	ctx, cancel := context.WithCancel(ctx)
	t := &transport{
		own: own, peers: peers, done: ctx.Done(), cancel: cancel,
		packets: make(chan *memberlist.Packet, queue),
		streams: make(chan net.Conn),
		slots:   make(chan struct{}, maxStreams),
	}
	t.dial = func(addr netip.AddrPort, timeout time.Duration) (net.Conn, error) {
		d := net.Dialer{Timeout: timeout, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own.Addr(), 0))}
		conn, err := d.DialContext(ctx, "tcp", addr.String())
		if err != nil {
			return nil, err
		}
		return &dialed{conn, context.AfterFunc(ctx, func() { _ = conn.Close() })}, nil
	}
	var err error
	if t.udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(own)); err != nil {
		cancel()
		return nil, err
	}
	if t.tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(own)); err != nil {
		cancel()
		return nil, errors.Join(err, t.udp.Close())
	}
	t.running.Go(t.receive)
	t.running.Go(t.accept)
	return t, nil
}

func (t *transport) receive() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.pause()
			continue
		}
		if n == 0 || !t.peers().from[from.Addr().Unmap()] {
			continue
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
		select {
		case t.packets <- p:
		default:
		}
	}
}

func (t *transport) accept() {
	for {
		conn, err := t.tcp.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			t.pause() // there may be no more files to be had
			continue
		}
		from, err := netip.ParseAddrPort(conn.RemoteAddr().String())
		if err != nil || !t.peers().from[from.Addr().Unmap()] || !t.hand(conn) {
			_ = conn.Close()
		}
	}
}

func (t *transport) pause() {
	select {
	case <-time.After(50 * time.Millisecond):
	case <-t.done:
	}
}

// hand is false if too many streams are being served.
func (t *transport) hand(conn net.Conn) bool {
	select {
	case t.slots <- struct{}{}:
	default:
		return false
	}
	s := &stream{Conn: conn, slots: t.slots}
	select {
	case t.streams <- s:
	case <-t.done:
		_ = s.Close()
	}
	return true
}

// stream gives its slot back when it is closed.
type stream struct {
	net.Conn
	slots  chan struct{}
	closed sync.Once
}

func (s *stream) Close() error {
	s.closed.Do(func() { <-s.slots })
	return s.Conn.Close()
}

// dialed is a stream that ends with the transport: nobody is waited for then.
type dialed struct {
	net.Conn
	forget func() bool
}

func (d *dialed) Close() error {
	d.forget()
	return d.Conn.Close()
}

// member is the address of a member.
func (t *transport) member(addr string) (netip.AddrPort, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return a, err
	}
	if a.Port() != t.own.Port() || !t.peers().from[a.Addr().Unmap()] {
		return a, fmt.Errorf("%s: %w", addr, errNoPeer)
	}
	return a, nil
}

// FinalAdvertiseAddr is where the node is listed.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.own.Addr().AsSlice(), int(t.own.Port()), nil
}

// WriteTo sends a packet.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet. One to a stranger is as good as lost: an error
// would keep memberlist from giving up a node that is no longer listed there.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	a, err := t.member(to.Addr)
	if errors.Is(err, errNoPeer) {
		return time.Now(), nil
	}
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, a)
	return time.Now(), err
}

// DialTimeout opens a stream.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream, from the address that the other knows.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	a, err := t.member(to.Addr)
	if err != nil {
		return nil, err
	}
	return t.dial(a, timeout)
}

// PacketCh is what comes.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh is who comes.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown closes the ports.
func (t *transport) Shutdown() error {
	t.cancel()
	err := errors.Join(t.udp.Close(), t.tcp.Close())
	t.running.Wait()
	return err
}
