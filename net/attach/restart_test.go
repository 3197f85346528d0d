// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"skep/net/attach"
	"skep/net/ipam"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/nft"
	"skep/store/object"
)

func TestRestart_TrafficGoesOn(t *testing.T) {
	n := newNode(t, "bbbbbb")
	client := linktest.NewHost(t)
	web := n.connect(t, "web", port("tcp", 8080, 80))
	serve(t, web, "web", 80)
	c, err := dial(t, client, "tcp", at(client.Gateway, 8080))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	before, _ := n.table(t)
	for range 10 {
		n.shut(t)
		// While no process is there, too.
		mustGet(t, client, "tcp", at(client.Gateway, 8080), "web")
		if _, _, err := ask(c); err != nil {
			t.Fatalf("an open connection was cut: %v", err)
		}
		n.open(t)
		mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
	}
	after, _ := n.table(t)
	if before.String() != after.String() {
		t.Errorf("the table was\n%s, is\n%s", before, after)
	}
	if got, ok := n.Attachment("web"); !ok || fmt.Sprint(got) != fmt.Sprint(web.Attachment) {
		t.Errorf("the attachment was %+v, is %+v", web.Attachment, got)
	}
	if err := listen(t, "tcp", ":8080"); err == nil {
		t.Error("after a restart the port is free for others")
	}
	if again := n.connect(t, "web", port("tcp", 8080, 80)); again.Address != web.Address {
		t.Error("connected again, got another address")
	}
}

// What is kept for others changes without anything that is there.
func TestAmend(t *testing.T) {
	n := newNode(t, "bbbbbb")
	client := linktest.NewHost(t)
	web := n.connect(t, "web", port("tcp", 8080, 80))
	serve(t, web, "web", 80)
	e := object.Endpoint{ID: "web", Overlays: []object.Overlay{{Network: "front", Interface: "eth1"}}, DNS: &object.ResolverConfig{Search: []string{"example.org"}}}
	if _, err := n.Amend(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	want := web.Attachment
	want.Endpoint.Overlays, want.DNS = e.Overlays, e.DNS
	for range 2 {
		mustGet(t, client, "tcp", at(client.Gateway, 8080), "web")
		if got, ok := n.Attachment("web"); !ok || !reflect.DeepEqual(got.Endpoint, want.Endpoint) || got.Address != want.Address {
			t.Errorf("the attachment is %+v, want %+v", got, want)
		}
		n.shut(t)
		n.open(t)
	}
	if _, err := n.Amend(t.Context(), object.Endpoint{ID: "other"}); !errdefs.IsNotFound(err) {
		t.Errorf("of one that is not there: %v", err)
	}
}

func TestRestart_AnotherProgramTookThePort(t *testing.T) {
	n := newNode(t, "bbbbbb")
	serve(t, n.connect(t, "web", port("tcp", 8080, 80)), "web", 80)
	n.shut(t)
	l, err := net.Listen("tcp", ":8080")
	if err != nil {
		t.Fatal(err)
	}
	n.open(t)
	mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Disconnect(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
}

func TestRestart_SweepsWhatACrashLeft(t *testing.T) {
	n := newNode(t, "bbbbbb")
	keep := n.connect(t, "keep", port("tcp", 8080, 80))
	lost := n.connect(t, "lost", port("tcp", 8081, 80))
	rebooted := n.connect(t, "rebooted")
	n.shut(t)
	// A process dies before it wrote the record, or the machine was restarted.
	if err := os.Remove(filepath.Join(n.config.RunDir, "attach", "lost.json")); err != nil {
		t.Fatal(err)
	}
	if err := link.Remove(rebooted.Namespace); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.config.RunDir, "attach", "damaged.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.open(t)
	if link.Pinned(lost.Namespace) {
		t.Error("a namespace without a record is left")
	}
	if got := devices(t, "vbbbbbb"); len(got) != 1 || got[0] != keep.Interface {
		t.Errorf("devices: %s", got)
	}
	if err := listen(t, "tcp", ":8081"); err != nil {
		t.Errorf("a port without a record is taken: %v", err)
	}
	serve(t, keep, "keep", 80)
	mustGet(t, here{}, "tcp", "127.0.0.1:8080", "keep")
}

func TestRetain(t *testing.T) {
	n := newNode(t, "bbbbbb")
	for i, id := range []string{"a", "b", "c"} {
		n.connect(t, id, port("tcp", uint16(8080+i), 80))
	}
	n.restart(t)
	if err := n.Retain(t.Context(), []string{"b", "unknown"}); err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"a": false, "b": true, "c": false} {
		if _, ok := n.Attachment(id); ok != want {
			t.Errorf("%s is there: %t", id, ok)
		}
	}
	if got := devices(t, "vbbbbbb"); len(got) != 1 {
		t.Errorf("devices: %s", got)
	}
}

func TestConverge_MendsWhatOthersBreak(t *testing.T) {
	n := newNode(t, "bbbbbb")
	web := n.connect(t, "web", port("tcp", 8080, 80))
	serve(t, web, "web", 80)
	if err := n.Converge(t.Context()); err != nil {
		t.Fatal(err)
	}
	c, err := nft.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	for name, harm := range map[string]func() error{
		"table deleted": func() error { return c.Delete(nft.IPv4, "skep-bbbbbb") },
		"table emptied": func() error { return c.Replace(nft.Table{Name: "skep-bbbbbb"}) },
		"bridge deleted": func() error {
			l, err := netlink.LinkByName("skbbbbbb")
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := harm(); err != nil {
				t.Fatal(err)
			}
			// Refused at once where the rules are gone: the port's reservation
			// takes no connection.
			_, err := dialWithin(t, here{}, "tcp", "127.0.0.1:8080", patience/4)
			if err == nil || (name != "bridge deleted" && !errors.Is(err, syscall.ECONNREFUSED)) {
				t.Fatalf("harm was done, but: %v", err)
			}
			if err := n.Converge(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
		})
	}
	// Without waiting for that, too: the next change finds out.
	if err := c.Delete(nft.IPv4, "skep-bbbbbb"); err != nil {
		t.Fatal(err)
	}
	n.connect(t, "other", port("tcp", 8081, 80))
	mustGet(t, here{}, "tcp", "127.0.0.1:8080", "web")
}

func TestOpen_RefusesABadScope(t *testing.T) {
	for _, s := range []string{"", "abc", "ABCDEF", "zzzzzz", "1234567"} {
		c := attach.Config{Dir: t.TempDir(), RunDir: t.TempDir(), Scope: s}
		if _, err := attach.Open(t.Context(), c); err == nil {
			t.Errorf("scope %q was taken", s)
		}
	}
}

func TestOpen_FailsWithoutAFreeSubnet(t *testing.T) {
	_, err := attach.Open(t.Context(), attach.Config{
		Dir: t.TempDir(), RunDir: t.TempDir(), Scope: "bbbbbb", Logger: slog.New(slog.DiscardHandler),
		Ranges: []ipam.Range{{Base: netip.MustParsePrefix("127.0.0.0/16"), Bits: 24}},
	})
	if !errors.Is(err, errdefs.ErrResourceExhausted) {
		t.Errorf("got %v", err)
	}
}

func TestOpen_TellsOfAnotherFirewall(t *testing.T) {
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	policy := nftables.ChainPolicyDrop
	other := c.AddTable(&nftables.Table{Name: "other", Family: nftables.TableFamilyINet})
	c.AddChain(&nftables.Chain{
		Name: "fw", Table: other, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter, Policy: &policy,
	})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.DelTable(other)
		if err := c.Flush(); err != nil {
			t.Error(err)
		}
	})
	n := newNode(t, "bbbbbb")
	var log bytes.Buffer
	n.config.Logger = slog.New(slog.NewTextHandler(&log, nil))
	n.restart(t)
	if !strings.Contains(log.String(), "other fw") {
		t.Errorf("logged: %s", log.String())
	}
}

// Two nodes that start at once choose different subnets.
func TestOpen_NodesStartTogether(t *testing.T) {
	nodes := make([]*node, 4)
	var wg sync.WaitGroup
	for i := range nodes {
		dir := t.TempDir()
		nodes[i] = &node{config: attach.Config{
			Dir: dir, RunDir: filepath.Join(dir, "run"), Scope: fmt.Sprintf("%06x", i), Logger: slog.New(slog.DiscardHandler),
		}}
		wg.Go(func() {
			a, err := attach.Open(t.Context(), nodes[i].config)
			if err != nil {
				t.Error(err)
			}
			nodes[i].Attach = a
		})
	}
	wg.Wait()
	subnets := map[netip.Prefix]bool{}
	for _, n := range nodes {
		if n.Attach == nil {
			continue
		}
		list, err := n.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		subnets[list[0].IPAM.Config[0].Subnet] = true
		if err := errors.Join(n.Destroy(t.Context()), n.Close()); err != nil {
			t.Error(err)
		}
	}
	if len(subnets) != len(nodes) {
		t.Errorf("%d nodes chose %v", len(nodes), subnets)
	}
}
