// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"skep/net/balance"
	"skep/net/balance/ipvs"
	"skep/net/nft"
)

// harm is what others may do to a balancer, on a thread in its namespace.
type harm struct {
	name string
	do   func() error
}

func harms(w *world) []harm {
	if w.Mode() == balance.IPVS {
		return harmsIPVS()
	}
	return []harm{
		{"delete the table", withFilter(func(c *nft.Conn) error { return c.Delete(nft.Inet, w.config.Table) })},
		{"empty the table", withFilter(func(c *nft.Conn) error { return c.Replace(nft.Table{Family: nft.Inet, Name: w.config.Table}) })},
	}
}

func withFilter(f func(*nft.Conn) error) func() error {
	return func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		return errors.Join(f(c), c.Close())
	}
}

// left is what the balancer has in the kernel.
func (w *world) left(tb testing.TB) string {
	tb.Helper()
	if w.Mode() == balance.IPVS {
		return w.leftIPVS(tb)
	}
	text := ""
	w.node.within(tb, withFilter(func(c *nft.Conn) error {
		table, ok, err := c.Read(nft.Inet, w.config.Table)
		if ok {
			text = table.String()
		}
		return err
	}))
	return text
}

// idle is how long an idle connection of TCP is known.
func (w *world) idle(tb testing.TB) time.Duration {
	tb.Helper()
	shortest := time.Duration(0)
	w.node.within(tb, func() error {
		b, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
		if err != nil {
			return err
		}
		n, err := strconv.Atoi(strings.TrimSpace(string(b)))
		shortest = time.Duration(n) * time.Second
		return err
	})
	if w.Mode() == balance.IPVS {
		w.node.within(tb, withIPVS(func(c *ipvs.Conn) error {
			t, err := c.Timeouts()
			shortest = min(shortest, t.TCP)
			return err
		}))
	}
	return shortest
}
