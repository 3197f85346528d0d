// SPDX-License-Identifier: Apache-2.0

package balance

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"skep/net/nft"
)

// filter balances by the packet filter's translation of addresses.
type filter struct {
	config Config
	conn   *nft.Conn
	// now is the kernel's table; known is false until it was written once.
	now   nft.Table
	known bool
	// checked is the ruleset's generation at which the table was seen to be right.
	checked uint32
}

func openFilter(c Config) (*filter, error) {
	conn, err := nft.Open()
	if err != nil {
		return nil, err
	}
	return &filter{config: c, conn: conn}, nil
}

func (f *filter) left() ([]key, error) {
	t, _, err := f.conn.Read(nft.Inet, f.config.Table)
	if err != nil {
		return nil, err
	}
	var keys []key
	for _, m := range t.Maps {
		for _, e := range m.Elements {
			if k, ok := parseKey(e.Key); ok {
				keys = append(keys, k)
			}
		}
	}
	return keys, nil
}

// parseKey is the inverse of nft.PortKey with an address.
func parseKey(packed string) (key, bool) {
	split := len(packed) - nft.WidthPort
	if split < 0 {
		return key{}, false
	}
	a, ok := netip.AddrFromSlice([]byte(packed[:split]))
	rest := []byte(packed[split:])
	return key{a, rest[0], binary.BigEndian.Uint16(rest[nft.WidthPort/2:])}, ok
}

func (f *filter) set(ctx context.Context, services []service) error {
	return f.hold(ctx, plan(f.config, services))
}

// hold makes the kernel's table this one, and keeps it so.
func (f *filter) hold(ctx context.Context, next nft.Table) error {
	if err := f.write(ctx, next); err != nil {
		return err
	}
	f.now, f.known = next, true
	return nil
}

func (f *filter) write(ctx context.Context, next nft.Table) error {
	if !f.known {
		return f.conn.Replace(next)
	}
	err := f.conn.Apply(f.now, next)
	if err == nil {
		return nil
	}
	// Somebody has changed the table: then it is made anew.
	if again := f.conn.Replace(next); again != nil {
		return errors.Join(err, again)
	}
	f.config.Logger.WarnContext(ctx, "replaced table that was not as left", slog.String("table", next.Name), slog.Any("err", err))
	return nil
}

func (f *filter) differs() (int, error) {
	have, _, err := f.conn.Read(nft.Inet, f.config.Table)
	if err != nil {
		return 0, err
	}
	return f.now.Differences(have), nil
}

func (f *filter) check(context.Context) (int, error) {
	if !f.known {
		return 0, nil
	}
	generation, err := f.conn.Generation()
	if err != nil || generation == f.checked {
		return 0, err
	}
	n, err := f.differs()
	if err != nil {
		return 0, err
	}
	if n > 0 {
		if err := f.conn.Replace(f.now); err != nil {
			return 0, err
		}
		// It is looked at again next time: others may have changed it since.
		generation = 0
	}
	f.checked = generation
	return n, nil
}

func (f *filter) destroy() error {
	if err := f.conn.Delete(nft.Inet, f.config.Table); err != nil {
		return err
	}
	f.known = false
	return nil
}

func (f *filter) close() error {
	if err := f.conn.Close(); err != nil {
		return fmt.Errorf("close nftables: %w", err)
	}
	return nil
}
