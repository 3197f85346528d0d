package tasks

import (
	"net"
	"os"
	"testing"

	"github.com/moby/moby/api/types/network"

	"skep/store/object"
)

func TestSocketPort(t *testing.T) {
	tests := []struct {
		line, state string
		port        uint16
		ok          bool
	}{
		{"  sl  local_address rem_address   st tx_queue rx_queue", tcpListen, 0, false},
		{"   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0", tcpListen, 80, true},
		{"   1: 0100007F:0050 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0", tcpListen, 0, false},
		{"   2: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 0:0", "", 53, true},
		{"   3: 00000000:XYZ 00000000:0000 0A", tcpListen, 0, false},
		{"", "", 0, false},
	}
	for _, tt := range tests {
		if port, ok := socketPort(tt.line, tt.state); port != tt.port || ok != tt.ok {
			t.Errorf("socketPort(%q, %q) = %d, %v; want %d, %v", tt.line, tt.state, port, ok, tt.port, tt.ok)
		}
	}
}

func TestListens_SeesRealSockets(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	udp, err := net.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	ps := []object.Port{
		{Protocol: network.TCP, Container: uint16(tcp.Addr().(*net.TCPAddr).Port)},
		{Protocol: network.UDP, Container: uint16(udp.LocalAddr().(*net.UDPAddr).Port)},
	}
	if ok, err := listens(os.Getpid(), ps); err != nil || !ok {
		t.Errorf("with both sockets open: %v, %v", ok, err)
	}
	tcp.Close()
	if ok, err := listens(os.Getpid(), ps); err != nil || ok {
		t.Errorf("with one socket closed: %v, %v", ok, err)
	}
	if ok, err := listens(1<<30, ps); err != nil || ok {
		t.Errorf("of a process that is gone: %v, %v", ok, err)
	}
}
