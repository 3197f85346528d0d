// SPDX-License-Identifier: Apache-2.0

package echo_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"skep/net/echo"
	"skep/net/link"
	"skep/net/link/linktest"
)

func TestMain(m *testing.M) { linktest.Main(m) }

// world is two namespaces with a cable, of which the second is asked.
func world(t *testing.T) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "asker")
	if err := link.Create(path, link.Loopback); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := link.Remove(path); err != nil {
			t.Error(err)
		}
	})
	err := link.Within(path, func() error {
		l, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, a := range []string{"10.9.0.1/32", "10.9.0.2/32", "fd00:9::1/128", "fd00:9::2/128"} {
			addr, err := netlink.ParseAddr(a)
			if err != nil {
				return err
			}
			addr.Flags = 2 // IFA_F_NODAD
			if err := netlink.AddrAdd(l, addr); err != nil {
				return err
			}
		}
		// The addresses of nobody: there is a way, and no answer.
		hole := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "hole"}}
		if err := netlink.LinkAdd(hole); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(hole); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr("10.9.1.1/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(hole, addr)
	})
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func TestAsk_TellsWhoAnswers(t *testing.T) {
	path := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	all := addrs("10.9.0.1", "10.9.0.2", "fd00:9::1", "fd00:9::2")
	began := time.Now()
	took, err := echo.Ask(ctx, path, addrs("10.9.0.1", "fd00:9::1"), all)
	if err != nil || len(took) != len(all) {
		t.Errorf("got %v, %v", took, err)
	}
	if time.Since(began) > 5*time.Second {
		t.Errorf("waited %v for those who had answered", time.Since(began))
	}
}

func TestAsk_WaitsForTheSilentUntilItsTimeIsOver(t *testing.T) {
	path := world(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	took, err := echo.Ask(ctx, path, addrs("10.9.0.1"), addrs("10.9.0.2", "10.9.1.7", "10.77.0.1", "fd00:9::2"))
	if _, ok := took[netip.MustParseAddr("10.9.0.2")]; err != nil || len(took) != 1 || !ok {
		t.Errorf("got %v, %v", took, err)
	}
	if ctx.Err() == nil {
		t.Error("did not wait")
	}
	if took, err := echo.Ask(ctx, path, addrs("10.9.0.1"), addrs("10.9.0.2")); len(took) != 0 {
		t.Errorf("answered after the end: %v, %v", took, err)
	}
}

func TestAsk_SaysWhatCannotBe(t *testing.T) {
	if _, err := echo.Ask(t.Context(), "/nowhere", addrs("10.9.0.1"), addrs("10.9.0.2")); err == nil {
		t.Error("asked from nowhere")
	}
	if took, err := echo.Ask(t.Context(), world(t), addrs("10.9.0.1"), nil); err != nil || len(took) != 0 {
		t.Errorf("got %v, %v", took, err)
	}
}
