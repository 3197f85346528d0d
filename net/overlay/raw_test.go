// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wire is a device's frames, as they are.
type wire struct {
	fd    int
	index int
}

// tap opens the device of a place.
func tap(tb testing.TB, at place) *wire {
	tb.Helper()
	w := &wire{}
	at.Within(tb, func() (err error) {
		ifc, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		w.index = ifc.Index
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: w.index}),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
		)
	})
	tb.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

func (w *wire) send(tb testing.TB, frame []byte) {
	tb.Helper()
	if err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index}); err != nil {
		tb.Fatal(err)
	}
}

// frames are those that came in, until one matches or time is up; the last one matches.
func (w *wire) await(tb testing.TB, limit time.Duration, match func([]byte) bool) bool {
	tb.Helper()
	b := make([]byte, 65536)
	for end := time.Now().Add(limit); time.Now().Before(end); {
		n, from, err := unix.Recvfrom(w.fd, b, 0)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			tb.Fatal(err)
		}
		ll, ok := from.(*unix.SockaddrLinklayer)
		if ok && ll.Pkttype != unix.PACKET_OUTGOING && match(b[:n]) {
			return true
		}
	}
	return false
}

// frame is an Ethernet frame.
func frame(to, from net.HardwareAddr, kind uint16, payload []byte) []byte {
	b := append(append([]byte{}, to...), from...)
	b = binary.BigEndian.AppendUint16(b, kind)
	return append(b, payload...)
}

// marked is what the tests' packets carry, to know them again.
const marked = "frames of the overlay's tests"

// udp4 is a datagram to a port that nobody has.
func udp4(from, to netip.Addr) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+8+len(marked)))
	binary.BigEndian.PutUint16(b[10:], ^sum(b))
	return append(b, udp()...)
}

func udp6(from, to netip.Addr) []byte {
	b := []byte{0x60, 0, 0, 0, 0, byte(8 + len(marked)), unix.IPPROTO_UDP, 64}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, udp()...)
}

func udp() []byte {
	b := []byte{0x1b, 0x59, 0x1b, 0x59, 0, byte(8 + len(marked)), 0, 0}
	return append(b, marked...)
}

// arp says that an address is at mac; it is a question for another address.
func arp(op uint16, mac net.HardwareAddr, from, about netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4}
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(append(b, mac...), from.AsSlice()...)
	return append(append(b, 0, 0, 0, 0, 0, 0), about.AsSlice()...)
}

// icmp6 is a message of neighbour discovery about an address.
func icmp6(kind byte, mac net.HardwareAddr, from, to, about netip.Addr) []byte {
	m := append([]byte{kind, 0, 0, 0, 0x20, 0, 0, 0}, about.AsSlice()...)
	option := byte(2)
	if kind == 135 {
		option = 1
	}
	m = append(append(m, option, 1), mac...)
	pseudo := append(append([]byte{}, from.AsSlice()...), to.AsSlice()...)
	pseudo = append(pseudo, 0, 0, 0, byte(len(m)), 0, 0, 0, unix.IPPROTO_ICMPV6)
	binary.BigEndian.PutUint16(m[2:], ^sum(append(pseudo, m...)))
	b := []byte{0x60, 0, 0, 0, 0, byte(len(m)), unix.IPPROTO_ICMPV6, 255}
	b = append(append(b, from.AsSlice()...), to.AsSlice()...)
	return append(b, m...)
}

func sum(b []byte) uint16 {
	var s uint32
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
	}
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// txChecksums asks a device of the thread's namespace, as ethtool does.
func txChecksums(name string) (bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	defer func() { _ = unix.Close(fd) }()
	value := struct{ cmd, data uint32 }{cmd: unix.ETHTOOL_GTXCSUM}
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(req.name[:], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(&value)
	if errno != 0 {
		return false, errno
	}
	return value.data != 0, nil
}
