// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"bufio"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/overlay"
)

const crashNode = "SKEP_OVERLAY_CRASH_NODE"

// A process is killed at any moment while it sets networks and attaches and
// detaches containers. What it said was there is whole for the next process,
// and what it said was gone is gone; nothing else is left.
func TestCrash(t *testing.T) {
	if at := os.Getenv(crashNode); at != "" {
		untilKilled(t, at)
		return
	}
	sw := linktest.NewSwitch(t)
	n, far := newNode(t, sw), newNode(t, sw)
	far.set(t, crashNetwork(0, far.Address))
	there := far.attach(t, "there", "net0", "10.0.9.200/24")
	serve(t, there)
	homes := t.TempDir()
	r := rand.New(rand.NewPCG(1, 2))
	survived := 0
	for round := range 25 {
		n.shut(t)
		said := crash(t, n, homes, time.Duration(r.IntN(150))*time.Millisecond)
		n.open(t)
		for id, attached := range said {
			if got := len(n.Attached(id)) > 0; attached && !got {
				t.Errorf("round %d: %s was attached and is gone", round, id)
			}
		}
		// Whatever it was about to do, what is wanted now is made, at once.
		w := crashNetwork(0, n.Address)
		w.Peers = []overlay.Peer{there.peer()}
		n.set(t, w)
		n.right(t, "net0")
		for i := range 8 {
			for _, a := range n.Attached(fmt.Sprint("c", i)) {
				b := &box{a, n}
				far.set(t, func() *overlay.Network {
					f := crashNetwork(0, far.Address)
					f.Peers = []overlay.Peer{b.peer()}
					return f
				}())
				reach(t, b, "tcp", there.addrs()[0], 1000)
				survived++
			}
		}
		if left, _ := filepath.Glob(filepath.Join(n.config.RunDir, "overlay/netns/*")); len(left) != 1 {
			t.Errorf("round %d: namespaces %s", round, left)
		}
		n.hasOnlyItsOwn(t)
	}
	if survived == 0 {
		t.Error("no container survived any round: the test sees nothing")
	}
	for i := range 8 {
		if err := link.Remove(filepath.Join(homes, fmt.Sprint("c", i))); err != nil {
			t.Error(err)
		}
	}
}

// crash runs a process for a while, and returns what it said: which containers
// it had attached last, or detached.
func crash(t *testing.T, n *node, homes string, after time.Duration) map[string]bool {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestCrash$", "-test.v")
	cmd.Env = append(os.Environ(), crashNode+"="+strings.Join([]string{n.Path, n.config.RunDir, homes, n.Address.String()}, " "))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "ready" {
		continue
	}
	time.AfterFunc(after, func() { _ = cmd.Process.Kill() })
	said := map[string]bool{}
	for lines.Scan() {
		switch verb, id, _ := strings.Cut(lines.Text(), " "); verb {
		case "attached", "detaching":
			said[id] = verb == "attached"
		case "failed":
			t.Error(lines.Text())
		}
	}
	_ = cmd.Wait() // killed
	return said
}

func crashNetwork(i int, local netip.Addr) *overlay.Network {
	return &overlay.Network{
		ID: fmt.Sprint("net", i), VNI: uint32(5000 + i), Port: 4789, MTU: 1450, Local: local,
		Subnets: []overlay.Subnet{{Prefix: netip.MustParsePrefix("10.0.9.0/24"), Gateway: netip.MustParseAddr("10.0.9.1")}},
	}
}

// untilKilled sets one network for ever and another each second time, attaches
// containers to the first and detaches each second one, and says so.
func untilKilled(t *testing.T, at string) {
	t.Helper()
	f := strings.Fields(at)
	local := netip.MustParseAddr(f[3])
	var o *overlay.Overlay
	if err := link.Within(f[0], func() (err error) {
		o, err = overlay.Open(t.Context(), overlay.Config{RunDir: f[1], Scope: "abcdef", Logger: slog.New(slog.DiscardHandler)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	say := func(words ...any) { _, _ = fmt.Fprintln(os.Stdout, words...) }
	say("ready")
	for i := 0; ; i++ {
		networks := []*overlay.Network{crashNetwork(0, local)}
		if i%3 > 0 {
			networks = append(networks, crashNetwork(1+i%2, local))
		}
		if err := o.Set(t.Context(), networks); err != nil {
			say("failed", err)
		}
		id := fmt.Sprint("c", i%8)
		home := filepath.Join(f[2], id)
		if !link.Pinned(home) {
			if err := link.Create(home, link.Loopback); err != nil {
				say("failed", err)
			}
		}
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 9, byte(10 + i%8)}), 24)
		err := o.Attach(t.Context(), overlay.Attachment{
			ID: id, Network: "net0", Namespace: home, Interface: "eth0",
			Addresses: []netip.Prefix{addr}, MAC: overlay.MAC([]netip.Addr{addr.Addr()}),
		})
		if err != nil {
			say("failed", err)
		}
		say("attached", id)
		if i%2 == 1 {
			say("detaching", id)
			if err := o.Detach(t.Context(), id); err != nil {
				say("failed", err)
			}
		}
	}
}
