// SPDX-License-Identifier: Apache-2.0

package overlay_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"skep/net/link"
	"skep/net/overlay"
)

// While there is no process, and when there is a new one, traffic goes on.
func TestOpen_FindsEverythingAndTrafficGoesOn(t *testing.T) {
	n1, n2, c1, c2 := pair(t)
	serve(t, c2)
	c, err := dial(t, c1, "tcp", c2.addrs()[0], patience)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	going := func(when string) {
		t.Helper()
		if err := echo(c, 100_000); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	going("before")
	path, _ := n1.Namespace(webID)
	before, err := n1.Inspect(t.Context(), webID)
	if err != nil {
		t.Fatal(err)
	}
	n1.shut(t)
	going("without a process")
	if n := kernelChanges(t, path, func() { n1.open(t) }); n != 0 {
		t.Errorf("a new process changed the kernel %d times", n)
	}
	going("with a new process")
	if again, ok := n1.Namespace(webID); !ok || again != path {
		t.Errorf("namespace %q, %t", again, ok)
	}
	if got := n1.Attached("c1"); len(got) != 1 || got[0].Interface != "eth0" || got[0].Addresses[0] != c1.Addresses[0] {
		t.Errorf("attached: %v", got)
	}
	// It does not know the peers, so it takes none away.
	if n, err := n1.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("check: %d, %v", n, err)
	}
	near := n1.attach(t, "near", webID, "10.0.9.7/24")
	n2.set(t, web(n2, c1.peer(), near.peer()))
	reach(t, near, "tcp", c2.addrs()[0], 100)
	if err := n1.Detach(t.Context(), "near"); err != nil {
		t.Fatal(err)
	}
	if n := kernelChanges(t, path, func() { n1.set(t, web(n1, c2.peer())) }); n != 0 {
		t.Errorf("the first Set changed the kernel %d times", n)
	}
	after, err := n1.Inspect(t.Context(), webID)
	if d := cmp.Diff(before.Text, after.Text); d != "" || err != nil {
		t.Errorf("%v (-before +after):\n%s", err, d)
	}
	going("at the end")
}

// What has changed while there was no process is set right by the first Set.
func TestOpen_FirstSetMends(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	serve(t, c2)
	path, _ := n1.Namespace(webID)
	for name, do := range damage(t, portOf(t, path), c2) {
		t.Run(name, func(t *testing.T) {
			n1.shut(t)
			if err := link.Within(path, do); err != nil {
				t.Fatal(err)
			}
			n1.open(t)
			n1.set(t, web(n1, c2.peer()))
			n1.right(t, webID)
			reach(t, c1, "tcp", c2.addrs()[0], 10000)
		})
	}
}

// What a process was about to do when it died is not there for the next.
func TestOpen_SweepsWhatHasNoRecord(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	serve(t, c2)
	path, _ := n1.Namespace(webID)
	n1.shut(t)
	// A network that was being made or removed, with a number that is wanted.
	stray := filepath.Join(n1.config.RunDir, "overlay/netns/straystray")
	n1.Within(t, func() error {
		if err := link.Create(stray, link.Loopback); err != nil {
			return err
		}
		c, err := link.Open()
		if err != nil {
			return err
		}
		defer c.Close()
		return c.AddVxlan(link.Vxlan{Name: "vxlan0", VNI: 4098, Port: 4789, Local: n1.Address, MTU: 1450}, stray)
	})
	// A container that was being attached.
	if err := link.Within(path, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "p01234567", TxQLen: -1}, PeerName: "x", PeerTxQLen: -1})
	}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"overlay/attached/.half.json", "overlay/networks/.half.json", "overlay/networks/gone.json", "overlay/attached/gone.json", "overlay/netns/file"} {
		if err := os.WriteFile(filepath.Join(n1.config.RunDir, name), []byte(`{"ID":"gone"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n1.open(t)
	if link.Pinned(stray) {
		t.Error("the stray namespace is left")
	}
	other := web(n1)
	other.ID, other.VNI = "other", 4098
	n1.set(t, web(n1, c2.peer()), other)
	n1.right(t, webID)
	reach(t, c1, "tcp", c2.addrs()[0], 100)
	for _, pattern := range []string{"overlay/*/.half*", "overlay/*/gone*", "overlay/netns/file"} {
		if left, _ := filepath.Glob(filepath.Join(n1.config.RunDir, pattern)); len(left) > 0 {
			t.Errorf("files are left: %s", left)
		}
	}
}

// After the machine has been started anew there are files, maybe, and nothing else.
func TestOpen_WithoutWhatTheFilesSay(t *testing.T) {
	n1, _, c1, c2 := pair(t)
	path, _ := n1.Namespace(webID)
	n1.shut(t)
	if err := link.Remove(path); err != nil {
		t.Fatal(err)
	}
	n1.open(t)
	if _, ok := n1.Namespace(webID); ok || len(n1.Attached("c1")) > 0 {
		t.Error("it believes the files")
	}
	// The kernel takes a moment to be done with what was in it.
	c1.Within(t, func() error {
		if l, err := netlink.LinkByName("eth0"); err == nil {
			return netlink.LinkDel(l)
		}
		return nil
	})
	n1.set(t, web(n1, c2.peer()))
	if err := n1.Attach(t.Context(), c1.Attachment); err != nil {
		t.Fatal(err)
	}
	serve(t, c2)
	reach(t, c1, "tcp", c2.addrs()[0], 100)
}

func TestOpen_RefusesAScopeThatIsNone(t *testing.T) {
	if _, err := overlay.Open(t.Context(), overlay.Config{RunDir: t.TempDir(), Scope: "x"}); err == nil {
		t.Error("no error")
	}
}
