// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"skep/net/link"
	"skep/net/link/linktest"
)

// redirect leads what is for a port of this namespace to another one.
func redirect(t *testing.T, from, to uint16) {
	t.Helper()
	conn, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	table := conn.AddTable(&nftables.Table{Name: "redirect", Family: nftables.TableFamilyIPv4})
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "output", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binary.BigEndian.AppendUint16(nil, from)},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, to)},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// TestForgetFlows_LeavesAConnectionThatTookThePlaceOfOneThatWasOver: between the
// kernel's list of connections and the request to forget one, its client may
// connect from the same port again.
func TestForgetFlows_LeavesAConnectionThatTookThePlaceOfOneThatWasOver(t *testing.T) {
	const service = 7000
	client := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7001}
	h := linktest.NewHost(t)
	h.Within(t, func() error {
		var listeners [2]net.Listener
		for i := range listeners {
			l, err := net.Listen("tcp4", "127.0.0.1:0")
			if err != nil {
				return err
			}
			defer l.Close()
			listeners[i] = l
		}
		connect := func(to net.Listener) (own, other net.Conn) {
			redirect(t, service, uint16(to.Addr().(*net.TCPAddr).Port))
			own, err := (&net.Dialer{LocalAddr: client}).DialContext(context.Background(), "tcp4", "127.0.0.1:7000")
			if err != nil {
				t.Fatal(err)
			}
			if other, err = to.Accept(); err != nil {
				t.Fatal(err)
			}
			return own, other
		}
		own, other := connect(listeners[0])
		_ = other.Close() // first, so that only its side remembers
		if _, err := io.ReadAll(own); err != nil {
			return err
		}
		_ = own.Close()

		conn, err := link.Open()
		if err != nil {
			return err
		}
		defer conn.Close()
		own = nil
		if err := conn.ForgetFlowsOf(false, func(f link.Flow) bool {
			if f.Destination.Port() != service {
				return false
			}
			if own == nil {
				own, other = connect(listeners[1])
			}
			return true
		}); err != nil {
			return err
		}
		if own == nil {
			own, other = connect(listeners[1])
		}
		defer own.Close()
		if _, err := io.WriteString(other, "answer"); err != nil {
			return err
		}
		_ = other.Close()
		if b, err := io.ReadAll(own); err != nil || string(b) != "answer" {
			t.Errorf("%q, %v", b, err)
		}
		return nil
	})
}
