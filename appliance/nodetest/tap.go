package nodetest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tap is what passes a port of the switch.
type tap struct {
	fd     int
	frames [][]byte // what was taken from the socket
}

// tapRoom is how much passes before it is looked at, in bytes.
const tapRoom = 64 << 20

// openTap begins to keep what passes. It is to be closed.
func (s *netSwitch) openTap(port string) (*tap, error) {
	t := &tap{fd: -1}
	err := inside(s.ns, func() error {
		l, err := netlink.LinkByName(port)
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, tapRoom),
			unix.Bind(t.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index}),
		)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("tap %s: %w", port, err), t.close())
	}
	return t, nil
}

func (t *tap) close() error {
	if t.fd < 0 {
		return nil
	}
	return unix.Close(t.fd)
}

// read takes what has passed since it was read last. It fails if there was more
// than could be kept.
func (t *tap) read() error {
	b := make([]byte, 1<<17)
	for {
		n, _, err := unix.Recvfrom(t.fd, b, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			return fmt.Errorf("read tap: %w", err)
		}
		t.frames = append(t.frames, bytes.Clone(b[:n]))
	}
	s, err := unix.GetsockoptTpacketStats(t.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && s.Drops > 0 {
		err = fmt.Errorf("%d frames were not kept", s.Drops)
	}
	return err
}

// count is how many of the frames are encrypted, and in how many there is a text.
func (t *tap) count(text string) (encrypted, legible int) {
	const protocol = 14 + 9 // in the header of IPv4
	for _, f := range t.frames {
		if len(f) > protocol && binary.BigEndian.Uint16(f[12:]) == unix.ETH_P_IP && f[protocol] == unix.IPPROTO_ESP {
			encrypted++
		}
		if bytes.Contains(f, []byte(text)) {
			legible++
		}
	}
	return encrypted, legible
}

func cmdTap(ts *testscript.TestScript, _ bool, args []string) {
	s := onStage(ts)
	for _, name := range args {
		t, err := s.swarm.net.openTap(name)
		ts.Check(err)
		ts.Defer(func() { _ = t.close() })
		s.taps[name] = t
	}
}

func cmdTapped(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 2 || onStage(ts).taps[args[0]] == nil {
		ts.Fatalf("usage: tapped NAME TEXT, after tap NAME")
	}
	t := onStage(ts).taps[args[0]]
	ts.Check(t.read())
	encrypted, legible := t.count(args[1])
	fmt.Fprintf(ts.Stdout(), "%d frames, %d encrypted, %d with %s\n", len(t.frames), encrypted, legible, args[1])
	if neg == (legible > 0) || neg && encrypted == 0 {
		ts.Fatalf("of %d frames %d were encrypted, and %d had %s", len(t.frames), encrypted, legible, args[1])
	}
}
