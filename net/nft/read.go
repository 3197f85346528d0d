// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Generation changes with every change to any table of the namespace.
func (c *Conn) Generation() (uint32, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return 0, fmt.Errorf("open netfilter: %w", err)
	}
	defer func() { _ = conn.Close() }()
	msgs, err := conn.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data:   make([]byte, nfgenmsg),
	})
	if err != nil {
		return 0, fmt.Errorf("read the ruleset's generation: %w", err)
	}
	for _, m := range msgs {
		ad, err := netlink.NewAttributeDecoder(m.Data[min(nfgenmsg, len(m.Data)):])
		if err != nil {
			return 0, fmt.Errorf("read the ruleset's generation: %w", err)
		}
		ad.ByteOrder = binary.BigEndian
		for ad.Next() {
			if ad.Type() == unix.NFTA_GEN_ID {
				return ad.Uint32(), nil
			}
		}
	}
	return 0, errors.New("read the ruleset's generation: the kernel's answer has none")
}

// nfgenmsg is the length of the header of netfilter messages.
const nfgenmsg = 4

// Dropping lists the chains of other tables ("table chain") that drop at a
// point what they do not know. A packet has to pass the chains of all tables.
func (c *Conn) Dropping(at Point) ([]string, error) {
	var out []string
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyINet} {
		chains, err := c.c.ListChainsOfTableFamily(family)
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		for _, k := range chains {
			if k.Hooknum != nil && Point(*k.Hooknum) == at && k.Policy != nil && *k.Policy == nftables.ChainPolicyDrop {
				out = append(out, k.Table.Name+" "+k.Name)
			}
		}
	}
	return out, nil
}

// Read reads the table back. The second result is false if there is none.
func (c *Conn) Read(f Family, name string) (Table, bool, error) {
	t, ok, err := c.read(f, name)
	if err != nil {
		return Table{}, false, fmt.Errorf("read table %s: %w", name, err)
	}
	return t, ok, nil
}

func (c *Conn) read(f Family, name string) (Table, bool, error) {
	tables, err := c.c.ListTablesOfFamily(f.kernel())
	if err != nil {
		return Table{}, false, err
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }) {
		return Table{}, false, nil
	}
	kt := kernelTable(f, name)
	out := Table{Family: f, Name: name}
	targets := map[string][]Target{}
	sets, err := c.c.GetSets(kt)
	if err != nil {
		return Table{}, false, err
	}
	for _, s := range sets {
		if s.Dynamic {
			// What packets have put there is no part of the table.
			out.Maps = append(out.Maps, readTyped(s, nil))
			continue
		}
		var els []nftables.SetElement
		if els, err = c.c.GetSetElements(s); err != nil {
			return Table{}, false, err
		}
		if s.Anonymous {
			targets[s.Name] = readTargets(els)
			continue
		}
		if typed(s) {
			out.Maps = append(out.Maps, readTyped(s, els))
			continue
		}
		out.Maps = append(out.Maps, readMap(s.Name, els))
	}
	chains, err := c.c.ListChainsOfTableFamily(f.kernel())
	if err != nil {
		return Table{}, false, err
	}
	for _, kc := range chains {
		if kc.Table.Name != name {
			continue
		}
		ch, err := c.readChain(kc, kt, targets)
		if err != nil {
			return Table{}, false, err
		}
		out.Chains = append(out.Chains, ch)
	}
	return out, true, nil
}

func (c *Conn) readChain(kc *nftables.Chain, kt *nftables.Table, targets map[string][]Target) (Chain, error) {
	ch := Chain{Name: kc.Name}
	if kc.Hooknum != nil && kc.Priority != nil {
		ch.Hook = &Hook{Type: string(kc.Type), Point: Point(*kc.Hooknum), Priority: int32(*kc.Priority)}
	}
	rules, err := c.c.GetRules(kt, kc)
	if err != nil {
		return Chain{}, err
	}
	for _, kr := range rules {
		r := Rule{exprs: kr.Exprs}
		for _, e := range kr.Exprs {
			if l, ok := e.(*expr.Lookup); ok && targets[l.SetName] != nil {
				r.targets = targets[l.SetName]
			}
		}
		ch.Rules = append(ch.Rules, r)
	}
	return ch, nil
}

func readTargets(els []nftables.SetElement) []Target {
	slices.SortFunc(els, func(x, y nftables.SetElement) int {
		return int(binaryutil.NativeEndian.Uint32(x.Key)) - int(binaryutil.NativeEndian.Uint32(y.Key))
	})
	var out []Target
	for _, e := range els {
		out = append(out, unpackTarget(e.Val))
	}
	return out
}

func readMap(name string, els []nftables.SetElement) Map {
	m := Map{Name: name}
	for _, e := range els {
		m.Width = len(e.Key)
		m.Elements = append(m.Elements, Element{Key: string(e.Key), Chain: readGoto(e.Val)})
	}
	return m
}

// readGoto finds the chain in a verdict as the library leaves it: two
// attributes, the verdict's code and the chain's name.
func readGoto(val []byte) string {
	const header = 4
	if len(val) < 2*header+4 || int32(binary.BigEndian.Uint32(val[header:])) != unix.NFT_GOTO {
		return fmt.Sprintf("verdict %x", val)
	}
	name := val[2*header+4:]
	if i := slices.Index(name, 0); i >= 0 {
		name = name[:i]
	}
	return string(name)
}
