// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"net"
	"testing"

	"skep/net/link/umltest"
)

func TestInUML(t *testing.T) { umltest.Run(t, "^TestDirect", "nfnetlink") }

// User-mode Linux has no packet filter that could lead port 53 elsewhere.
func TestDirect_TakesPort53WhereThePacketFilterCannot(t *testing.T) {
	if !umltest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	for range 2 {
		w.open(t, client(ns, "n1"))
		for _, network := range []string{"udp", "tcp"} {
			if got := text(ask(t, ns, network, "web")); got != "NOERROR 60:10.0.1.2" {
				t.Errorf("by %s: got %s", network, got)
			}
		}
		if n, err := w.Check(t.Context()); n != 0 || err != nil {
			t.Errorf("checked: %d %v", n, err)
		}
		w.stop()
		w.start(t)
		w.Set(state(shop()))
	}
	within(t, ns, func() error {
		conn, err := net.ListenPacket("udp4", server)
		if err != nil {
			return err
		}
		return conn.Close()
	})
}
