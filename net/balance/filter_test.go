// SPDX-License-Identifier: Apache-2.0

package balance_test

import (
	"errors"
	"net"
	"testing"

	"skep/net/nft"
)

func timedOut(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// harms is what others may do to a balancer.
func harms(tb testing.TB, w *world) []func() error {
	tb.Helper()
	withFilter := func(f func(*nft.Conn) error) func() error {
		return func() error {
			c, err := nft.Open()
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			return f(c)
		}
	}
	return []func() error{
		withFilter(func(c *nft.Conn) error { return c.Delete(nft.Inet, w.config.Table) }),
		withFilter(func(c *nft.Conn) error { return c.Replace(nft.Table{Family: nft.Inet, Name: w.config.Table}) }),
	}
}

// left is what the balancer has in the kernel.
func (w *world) left(tb testing.TB) string {
	tb.Helper()
	text := ""
	w.node.within(tb, func() error {
		c, err := nft.Open()
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		table, ok, err := c.Read(nft.Inet, w.config.Table)
		if ok {
			text = table.String()
		}
		return err
	})
	return text
}
