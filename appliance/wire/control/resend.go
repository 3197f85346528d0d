package control

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// resendWithin is the longest that TCP waits before it sends again what was not
// acknowledged. Without a bound it waits as long again as it has waited in all:
// a network that was cut for ten seconds and is whole again would stand still
// for ten more.
const resendWithin = time.Second

// resendSoon bounds the wait, where the kernel can: it is tried, and nothing
// depends on it.
func resendSoon(c net.Conn) {
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RTO_MAX_MS, int(resendWithin.Milliseconds()))
	})
}
