// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"errors"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"skep/net/balance"
	"skep/net/balance/ipvs"
	"skep/net/link/umltest"
	"skep/net/link/vmtest"
)

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

func withIPVS(f func(*ipvs.Conn) error) func() error {
	return func() error {
		c, err := ipvs.Open()
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.Close())
	}
}

func harmsIPVS() []harm {
	change := func(f func([]ipvs.Service) []ipvs.Service) func() error {
		return withIPVS(func(c *ipvs.Conn) error {
			have, err := c.Services()
			if err != nil {
				return err
			}
			want, err := c.Services()
			if err != nil {
				return err
			}
			more, less := ipvs.Plan(have, f(want))
			return c.Run(append(more, less...))
		})
	}
	return []harm{
		{"delete everything", change(func([]ipvs.Service) []ipvs.Service { return nil })},
		{"delete a destination", change(func(s []ipvs.Service) []ipvs.Service {
			s[0].Destinations = nil
			return s
		})},
		{"drain a destination", change(func(s []ipvs.Service) []ipvs.Service {
			s[0].Destinations[0].Weight = 0
			return s
		})},
		{"take a service over", change(func(s []ipvs.Service) []ipvs.Service {
			s[0].Tag, s[0].Destinations = 0, nil
			return s
		})},
		{"change the timeouts", withIPVS(func(c *ipvs.Conn) error {
			return c.SetTimeouts(ipvs.Timeouts{TCP: time.Minute})
		})},
	}
}

func (w *world) leftIPVS(tb testing.TB) string {
	tb.Helper()
	var text []string
	w.node.within(tb, withIPVS(func(c *ipvs.Conn) error {
		all, err := c.Services()
		for _, s := range all {
			text = append(text, s.String())
		}
		return err
	}))
	return strings.Join(text, "\n")
}

func needsIPVS(t *testing.T) {
	t.Helper()
	if !umltest.Inside() && !vmtest.Inside() {
		t.Skip("runs in user-mode Linux: see TestInUML")
	}
}

// What the tool of all administrators shows.
func TestIPVS_AsIpvsadmShowsIt(t *testing.T) {
	needsIPVS(t)
	w := newWorld(t, balance.IPVS, balance.Output, 3)
	w.set(t, w.to(at(vip4, 80), "tcp", 8080, 0, ^1, 2), w.to(at(vip6, 53), "udp", 0, 0))
	w.node.within(t, func() error {
		out, err := exec.Command("ipvsadm", "-Ln").CombinedOutput()
		for _, want := range []string{
			"TCP  10.0.9.2:80 rr", "-> 10.0.9.20:8080 Masq 1 0 0", "-> 10.0.9.21:8080 Masq 0 0 0", "-> 10.0.9.22:8080 Masq 1 0 0",
			"UDP  [fd00:9::2]:53 rr", "-> [fd00:9::14]:53 Masq 1 0 0",
		} {
			if !strings.Contains(strings.Join(strings.Fields(string(out)), " "), strings.Join(strings.Fields(want), " ")) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
		return err
	})
}

// What is not ours is left alone.
func TestIPVS_LeavesOthersAlone(t *testing.T) {
	needsIPVS(t)
	w := newWorld(t, balance.IPVS, balance.Output, 1)
	other := ipvs.Service{
		Address: netip.MustParseAddr("10.0.9.9"), Protocol: 6, Port: 99,
		Destinations: []ipvs.Destination{{Address: netip.MustParseAddr("10.0.9.20"), Port: 99, Weight: 3}},
	}
	w.node.within(t, withIPVS(func(c *ipvs.Conn) error {
		more, _ := ipvs.Plan(nil, []ipvs.Service{other})
		return c.Run(more)
	}))
	w.set(t, w.to(at(vip4, 80), "tcp", 0, 0))
	if n, err := w.Check(t.Context()); n != 0 || err != nil {
		t.Errorf("check: %d, %v", n, err)
	}
	w.set(t)
	try(t, w.Destroy(t.Context()))
	if left := w.left(t); left != other.String() {
		t.Errorf("left is %q, want %q", left, other)
	}
}
