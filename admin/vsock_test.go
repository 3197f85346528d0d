package admin

import (
	"net"
	"testing"

	"github.com/mdlayher/vsock"
)

func TestVsockPeer_IsTheHypervisorOrNobody(t *testing.T) {
	for _, tt := range []struct {
		addr net.Addr
		role Role
		ok   bool
	}{
		{&vsock.Addr{ContextID: vsock.Host, Port: 1023}, Admin, true},
		{&vsock.Addr{ContextID: vsock.Host, Port: 1024}, Viewer, true},
		{&vsock.Addr{ContextID: vsock.Hypervisor, Port: 1}, Nobody, false},
		{&vsock.Addr{ContextID: vsock.Local, Port: 1}, Nobody, false},
		{&vsock.Addr{ContextID: 3, Port: 1}, Nobody, false},
		{&net.TCPAddr{}, Nobody, false},
	} {
		p, ok := vsockPeer(tt.addr)
		if ok != tt.ok || p.Role != tt.role {
			t.Errorf("%v: got %+v, %v", tt.addr, p, ok)
		}
	}
}
