// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	wire "github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"skep/net/dns"
)

// Resolvers of C libraries ask for both kinds of addresses at once, from one socket.
func TestResolver_AnswersTwoQuestionsOfOneSocket(t *testing.T) {
	w := newWorld(t)
	w.Set(state(shop()))
	ns := container(t)
	w.open(t, client(ns, "n1"))
	within(t, ns, func() error {
		conn, err := net.Dial("udp4", server)
		if err != nil {
			return err
		}
		defer conn.Close()
		want := map[string]bool{"NOERROR 60:10.0.1.2": true, "NOERROR 60:fd00:1::2": true}
		for _, kind := range []uint16{wire.TypeA, wire.TypeAAAA} {
			if _, err := conn.Write(question(t, "web", kind)); err != nil {
				return err
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		for range 2 {
			b := make([]byte, 512)
			n, err := conn.Read(b)
			if err != nil {
				return err
			}
			got := text(unpack(t, b[:n]))
			if !want[got] {
				t.Errorf("got %s", got)
			}
			delete(want, got)
		}
		return nil
	})
}

func TestResolver_ServesRealResolvers(t *testing.T) {
	w := newWorld(t, serveUpstream(t, own, failing(wire.RcodeNameError)))
	w.Set(state(shop(), crowdNamed("n3", "crowd", 200)))
	ns := container(t)
	// glibc asks for the kinds of addresses that the machine itself has.
	within(t, ns, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, own := range []string{"10.0.1.200/24", "fd00:1::c8/64"} {
			a, err := netlink.ParseAddr(own)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, a); err != nil {
				return err
			}
		}
		return nil
	})
	c := client(ns, "n1", "n3")
	w.open(t, c)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver "+dns.Address+"\noptions ndots:0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The tests have a mount namespace of their own.
	if err := syscall.Mount(conf, "/etc/resolv.conf", "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("no /etc/resolv.conf to put another in the place of: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount("/etc/resolv.conf", syscall.MNT_DETACH) })
	tests := []struct {
		argv  []string
		want  string // is in what it prints
		fails bool
	}{
		{[]string{"getent", "ahosts", "web"}, "10.0.1.2", false},
		{[]string{"getent", "ahostsv6", "web"}, "fd00:1::2", false},
		{[]string{"getent", "ahostsv4", "queue"}, "10.0.1.7", false},
		{[]string{"getent", "ahosts", "tasks.crowd"}, "10.1.0.200", false},
		{[]string{"getent", "hosts", "10.0.1.3"}, "web.1.abc.shop", false},
		{[]string{"getent", "ahosts", "nobody"}, "", true},
		{[]string{"busybox", "nslookup", "web", dns.Address}, "10.0.1.2", false},
		{[]string{"busybox", "nslookup", "tasks.web", dns.Address}, "10.0.1.4", false},
		{[]string{"busybox", "nslookup", "10.0.1.3", dns.Address}, "web.1.abc.shop", false},
		{[]string{"busybox", "nslookup", "-type=mx", "web", dns.Address}, "", false},
		{[]string{"busybox", "nslookup", "nobody", dns.Address}, "NXDOMAIN", true},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.argv, " "), func(t *testing.T) {
			path, err := exec.LookPath(tt.argv[0])
			if err != nil {
				t.Skip(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			within(t, ns, func() error {
				out, err := exec.CommandContext(ctx, path, tt.argv[1:]...).CombinedOutput()
				if (err != nil) != tt.fails || !strings.Contains(string(out), tt.want) {
					t.Errorf("got %v, and:\n%s", err, out)
				}
				return nil
			})
		})
	}
}

func crowdNamed(id, service string, n int) *dns.Network {
	out := crowd(n)
	out.ID, out.Name, out.Services[0].Name = id, service+"s", service
	return out
}
