// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/network"

	"skep/net/balance"
	"skep/net/nft"
)

var update = flag.Bool("update", false, "write the golden files")

func output() balance.Config { return balance.Config{Table: "skep-vip"} }

func forwarded() balance.Config {
	return balance.Config{Table: "skep-mesh", Where: balance.Forwarded, Device: "gw0"}
}

// service is ADDRESS, ADDRESS:PORT or ADDRESS:PORT/PROTOCOL and its backends, a
// draining one with a minus sign before it.
func service(at string, backends ...string) balance.Service {
	at, proto, _ := strings.Cut(at, "/")
	s := balance.Service{Protocol: network.IPProtocol(proto)}
	s.Address, s.Port = address(at)
	for _, b := range backends {
		b, draining := strings.CutPrefix(b, "-")
		a, port := address(b)
		s.Backends = append(s.Backends, balance.Backend{Address: a, Port: port, Draining: draining})
	}
	return s
}

func address(s string) (netip.Addr, uint16) {
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr(), p.Port()
	}
	return netip.MustParseAddr(s), 0
}

type planned struct {
	name     string
	config   balance.Config
	services []balance.Service
}

func plans() []planned {
	return []planned{
		{"empty", output(), nil},
		{"vips", output(), []balance.Service{
			service("10.0.9.2", "10.0.9.5", "10.0.9.4", "-10.0.9.6"),
			service("10.0.9.3", "10.0.9.7"),
			service("fd00:9::2", "fd00:9::4", "fd00:9::5"),
		}},
		{"ports", output(), []balance.Service{
			service("10.0.9.2:80/tcp", "10.0.9.4:8080", "10.0.9.5"),
			service("10.0.9.2:53", "10.0.9.4"),
			service("10.0.9.2:53/udp", "10.0.9.5"),
			{Address: netip.MustParseAddr("10.0.9.2"), Protocol: "udp", Backends: service("10.0.9.2", "10.0.9.6").Backends},
			service("[fd00:9::2]:80/tcp", "[fd00:9::4]:8080", "[fd00:9::5]:81"),
		}},
		{"dead", output(), []balance.Service{
			service("10.0.9.2"),
			service("10.0.9.3:80/tcp", "-10.0.9.4"),
		}},
		{"mesh", forwarded(), []balance.Service{
			service("0.0.0.0:8080/tcp", "10.0.0.10:20001", "10.0.0.11:20001", "-10.0.0.12:20001"),
			service("0.0.0.0:53/udp", "10.0.0.10:21025"),
			service("[::]:8080/tcp", "[fd00::10]:20001"),
			service("172.18.0.2:8081/tcp", "10.0.0.10:22049"),
		}},
	}
}

func TestPlan_Golden(t *testing.T) {
	for _, p := range plans() {
		t.Run(p.name, func(t *testing.T) {
			table, err := balance.Plan(p.config, p.services)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, p.name+".nft", table.String())
			slices.Reverse(p.services)
			if again, _ := balance.Plan(p.config, p.services); again.String() != table.String() {
				t.Error("the services' order matters")
			}
		})
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s differs (-want +got):\n%s", name, d)
	}
}

func TestPlanBeside_Golden(t *testing.T) {
	services := []balance.Service{
		service("10.0.9.2", "10.0.9.4", "-10.0.9.6"),
		service("10.0.9.2:80/tcp", "10.0.9.5"),
		service("10.0.9.3", "-10.0.9.6"),
		service("10.0.9.7:80/tcp", "10.0.9.5"),
		service("10.0.9.8:80/tcp"),
		service("fd00:9::2", "fd00:9::4"),
	}
	table, err := balance.PlanBeside(output(), services)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "beside.nft", table.String())
}

func TestPlanIPVS_Golden(t *testing.T) {
	now := []balance.Service{
		service("10.0.9.2:80/tcp", "10.0.9.4:8080", "10.0.9.5", "-10.0.9.6"),
		service("10.0.9.2:53/udp", "10.0.9.4"),
		service("10.0.9.3", "10.0.9.4"),
		service("[fd00:9::2]:80/tcp", "fd00:9::4"),
		service("fd00:9::3", "fd00:9::4"),
	}
	next := []balance.Service{
		service("10.0.9.2:80/tcp", "-10.0.9.4:8080", "10.0.9.6", "10.0.9.7"),
		service("10.0.9.3", "10.0.9.5"),
		service("[fd00:9::2]:80/tcp"),
	}
	golden(t, "first.ipvs", balance.PlanIPVS(nil, now))
	golden(t, "change.ipvs", balance.PlanIPVS(now, next))
	golden(t, "none.ipvs", balance.PlanIPVS(next, next))
}

func TestPlan_RefusesWhatMakesNoSense(t *testing.T) {
	for _, c := range []struct {
		config  balance.Config
		service balance.Service
		want    string
	}{
		{output(), balance.Service{}, "a service has no address"},
		{output(), service("0.0.0.0:80/tcp"), "service tcp-80: any address can be balanced only where connections arrive"},
		{forwarded(), service("0.0.0.0"), "service all: all ports of any address would be everything"},
		{output(), service("10.0.0.1:80/icmp"), `service 10.0.0.1: there is no protocol "icmp"`},
		{output(), service("10.0.0.1:80/tcp", "fd00::1"), "service tcp-10.0.0.1-80: backend fd00::1 is of another family"},
		{output(), service("10.0.0.1", "10.0.0.2:80"), "service all-10.0.0.1 has all ports, its backend 10.0.0.2 . 80 one"},
	} {
		good := service("10.0.9.9:80/tcp", "10.0.9.4")
		table, err := balance.Plan(c.config, []balance.Service{c.service, good})
		if fmt.Sprint(err) != c.want {
			t.Errorf("got %v, want %s", err, c.want)
		}
		if !strings.Contains(table.String(), "chain tcp-10.0.9.9-80") {
			t.Errorf("%s: the other service was not planned", c.want)
		}
	}
	twice := []balance.Service{service("10.0.0.1:80/tcp"), service("10.0.0.1:80/tcp")}
	if _, err := balance.Plan(output(), twice); fmt.Sprint(err) != "service tcp-10.0.0.1-80 is given twice" {
		t.Errorf("got %v", err)
	}
}

// The kernel holds what the text says, whether the table is made whole or by
// the difference from any other.
func TestPlan_KernelAgrees(t *testing.T) {
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	check := func(t *testing.T, want nft.Table) {
		t.Helper()
		got, ok, err := c.Read(nft.Inet, want.Name)
		if err != nil || !ok {
			t.Fatalf("read: %t, %v", ok, err)
		}
		if d := cmp.Diff(want.String(), got.String()); d != "" || want.Differences(got) != 0 {
			t.Fatalf("kernel differs in %d (-want +got):\n%s", want.Differences(got), d)
		}
	}
	for _, from := range plans() {
		now, _ := balance.Plan(from.config, from.services)
		for _, to := range plans() {
			if to.config != from.config {
				continue
			}
			t.Run(from.name+" to "+to.name, func(t *testing.T) {
				if err := c.Replace(now); err != nil {
					t.Fatal(err)
				}
				check(t, now)
				next, _ := balance.Plan(to.config, to.services)
				if err := c.Apply(now, next); err != nil {
					t.Fatal(err)
				}
				check(t, next)
				if from.name != to.name && now.Differences(next) == 0 {
					t.Error("no difference is seen")
				}
			})
		}
		if err := c.Delete(nft.Inet, now.Name); err != nil {
			t.Fatal(err)
		}
	}
}
