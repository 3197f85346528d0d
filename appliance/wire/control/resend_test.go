package control

import (
	"errors"
	"net"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLinks_SendAgainWithinASecond(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	l := newLinks().add(conn, netip.Prefix{})
	defer l.Close()
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var most int
	if ctl := raw.Control(func(fd uintptr) {
		most, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS)
	}); ctl != nil {
		t.Fatal(ctl)
	}
	if errors.Is(err, unix.ENOPROTOOPT) {
		t.Skip("this kernel has no bound")
	}
	if err != nil || most != 1000 {
		t.Errorf("got %d ms, %v; want 1000", most, err)
	}
}
