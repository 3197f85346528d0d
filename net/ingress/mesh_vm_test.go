// SPDX-License-Identifier: Apache-2.0

package ingress_test

import (
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"skep/net/balance"
	"skep/net/ingress"
	"skep/net/kernel"
	"skep/net/link/vmtest"
)

// mode is what balances: in the virtual machine the part that this one may lack.
func mode() balance.Mode {
	if vmtest.Inside() {
		return balance.IPVS
	}
	return balance.NFT
}

// The whole mesh with IPVS. What is not about the balancer is skipped.
func TestInVM(t *testing.T) {
	if vmtest.Inside() {
		t.Skip("is in a virtual machine")
	}
	vmtest.Run(t, vmtest.Machine{
		Tests: "^TestMesh_", Skip: "^TestMesh_(Conflicts|Refuses|MembersEnd|WallsAroundMembers)$|^TestMesh_Mends$/(node|router|steering|leg|member)",
		Modules: kernel.Modules(), Programs: []string{"ipvsadm"},
	})
}

// What the tool of all administrators shows of the router.
func TestMesh_AsIpvsadmShowsIt(t *testing.T) {
	if mode() != balance.IPVS {
		t.Skip("runs in a virtual machine: see TestInVM")
	}
	w := newWorld(t, 2)
	client := w.lan.Machine(t)
	n := w.nodes[0]
	a, b, c := w.run(n, "a"), w.run(w.nodes[1], "b"), w.run(n, "c")
	w.publish(8080, "", 0, 80, a, b, c)
	w.publish(8081, ingress.SNAT, 0, 80, b)
	w.drain(c)
	for range 6 {
		conn, err := dial(t, client, netip.AddrPort{}, "tcp", at(n.Address, 8080))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		if _, seen, err := ask(conn); err != nil || seen.String() != conn.LocalAddr().String() {
			t.Errorf("seen as %s: %v", seen, err)
		}
	}
	path, _ := n.overlay.Namespace("ingress")
	within(t, path, func() error {
		out, err := exec.CommandContext(t.Context(), "ipvsadm", "-Ln", "--sort").CombinedOutput()
		// Its columns depend on the addresses.
		words := strings.Join(strings.Fields(string(out)), " ")
		const want = "Prot LocalAddress:Port Scheduler Flags -> RemoteAddress:Port Forward Weight ActiveConn InActConn" +
			" TCP 172.17.0.2:8080 rr -> 10.0.0.10:20481 Masq 1 3 0 -> 10.0.0.11:20481 Masq 1 3 0 -> 10.0.0.12:20481 Masq 0 0 0" +
			" TCP 172.17.0.2:8081 rr -> 10.0.0.11:80 Masq 1 0 0" +
			" UDP 172.17.0.2:8080 rr -> 10.0.0.10:20481 Masq 1 0 0 -> 10.0.0.11:20481 Masq 1 0 0 -> 10.0.0.12:20481 Masq 0 0 0" +
			" UDP 172.17.0.2:8081 rr -> 10.0.0.11:80 Masq 1 0 0"
		if _, services, _ := strings.Cut(words, ") "); services != want {
			t.Errorf("it shows %q, want %q", services, want)
		}
		return err
	})
}
