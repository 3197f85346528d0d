// SPDX-License-Identifier: Apache-2.0

package dns_test

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"

	"skep/net/dns"
	"skep/net/link"
	"skep/net/link/linktest"
	"skep/net/link/umltest"
)

func TestMain(m *testing.M) { umltest.Main(m, linktest.Main) }

// world is a node's resolver, and the directory that survives it.
type world struct {
	*dns.Resolver
	config dns.Config
	stop   func()
}

func newWorld(tb testing.TB, upstreams ...netip.AddrPort) *world {
	tb.Helper()
	w := &world{config: dns.Config{
		RunDir:    tb.TempDir(),
		Upstreams: func() []netip.AddrPort { return upstreams },
		Logger:    slog.New(slog.NewTextHandler(tb.Output(), nil)),
	}}
	w.start(tb)
	tb.Cleanup(func() { w.stop() })
	return w
}

// start is what a new process does.
func (w *world) start(tb testing.TB) {
	tb.Helper()
	r := dns.New(w.config)
	ctx, cancel := context.WithCancel(context.WithoutCancel(tb.Context()))
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.Resolver = r
	w.stop = func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			tb.Error(err)
		}
		done <- context.Canceled
	}
}

// open opens the container's name server.
func (w *world) open(tb testing.TB, c dns.Client) {
	tb.Helper()
	if err := w.Open(tb.Context(), c); err != nil {
		tb.Fatal(err)
	}
}

// container makes a network namespace as a container has one, and says its path.
func container(tb testing.TB) string {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "ns")
	if err := link.Create(path, link.Loopback); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := link.Remove(path); err != nil {
			tb.Error(err)
		}
	})
	return path
}

// within runs f on a thread that is in the container.
func within(tb testing.TB, path string, f func() error) {
	tb.Helper()
	if err := link.Within(path, f); err != nil {
		tb.Fatal(err)
	}
}
