// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"errors"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
)

// buffer is the room for one transaction and its acknowledgements.
const buffer = 16 << 20

// chunk is how many elements go into one message, whose length is 16 bits.
const chunk = 512

// Conn speaks to the packet filter of the network namespace of the thread that
// opened it. It is not safe for concurrent use.
type Conn struct{ c *nftables.Conn }

// Open opens a connection.
func Open() (*Conn, error) {
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(buffer), c.SetWriteBuffer(buffer))
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	return &Conn{c}, nil
}

// Close closes the connection.
func (c *Conn) Close() error { return c.c.CloseLasting() }

// Replace makes the kernel's table equal to t, whatever is there.
func (c *Conn) Replace(t Table) error {
	kt := kernelTable(t.Family, t.Name)
	// Adding first, because deleting what is not there would fail.
	c.c.AddTable(kt)
	c.c.DelTable(kt)
	c.c.AddTable(kt)
	if err := c.fill(change{chains: t.Chains, maps: t.Maps, full: true}, kt); err != nil {
		return fmt.Errorf("replace table %s: %w", t.Name, err)
	}
	return nil
}

// Apply makes the kernel's table equal to next, knowing that it is equal to
// now. It costs in proportion to what differs.
func (c *Conn) Apply(now, next Table) error {
	d := diff(now, next)
	if d.empty() {
		return nil
	}
	if err := c.fill(d, kernelTable(next.Family, next.Name)); err != nil {
		return fmt.Errorf("change table %s: %w", next.Name, err)
	}
	return nil
}

// Delete removes the table, if it is there.
func (c *Conn) Delete(f Family, name string) error {
	kt := kernelTable(f, name)
	c.c.AddTable(kt)
	c.c.DelTable(kt)
	if err := c.flush(); err != nil {
		return fmt.Errorf("delete table %s: %w", name, err)
	}
	return nil
}

func kernelTable(f Family, name string) *nftables.Table {
	return &nftables.Table{Name: name, Family: f.kernel()}
}

func (f Family) kernel() nftables.TableFamily {
	switch f {
	case IPv4:
		return nftables.TableFamilyIPv4
	case IPv6:
		return nftables.TableFamilyIPv6
	case Inet:
		return nftables.TableFamilyINet
	case Bridge:
		return nftables.TableFamilyBridge
	}
	panic(fmt.Sprint("no such family: ", f))
}

// fill sends a change. The order is such that every name exists when it is
// used and nothing is removed that is still named.
func (c *Conn) fill(d change, kt *nftables.Table) error {
	sets := map[string]*nftables.Set{}
	var id uint32
	for _, m := range d.maps {
		id++
		sets[m.Name] = kernelMap(m, kt, id)
	}
	if err := c.dropElements(d, sets); err != nil {
		return err
	}
	for _, name := range d.goneChains {
		c.c.FlushChain(&nftables.Chain{Name: name, Table: kt})
		c.c.DelChain(&nftables.Chain{Name: name, Table: kt})
	}
	for _, ch := range d.chains {
		kc := kernelChain(ch, kt)
		if d.known[ch.Name] {
			c.c.FlushChain(kc)
			continue
		}
		c.c.AddChain(kc)
	}
	for _, m := range d.maps {
		if d.full {
			if err := c.c.AddSet(sets[m.Name], nil); err != nil {
				return err
			}
		}
		for els := range slices.Chunk(m.Elements, chunk) {
			if err := c.c.SetAddElements(sets[m.Name], kernelElements(els)); err != nil {
				return err
			}
		}
	}
	for _, ch := range d.chains {
		for _, r := range ch.Rules {
			id++
			if err := c.addRule(r, kernelChain(ch, kt), sets, id); err != nil {
				return fmt.Errorf("chain %s: %w", ch.Name, err)
			}
		}
	}
	return c.flush()
}

// flush sends what was prepared. If it is refused, the first error says why;
// the others are of what depends on it.
func (c *Conn) flush() error {
	err := c.c.Flush()
	for {
		joined, ok := errors.AsType[interface {
			error
			Unwrap() []error
		}](err)
		if !ok {
			return err
		}
		err = joined.Unwrap()[0]
	}
}

func (c *Conn) dropElements(d change, sets map[string]*nftables.Set) error {
	for _, m := range d.goneElements {
		for els := range slices.Chunk(m.Elements, chunk) {
			if err := c.c.SetDeleteElements(sets[m.Name], kernelElements(els)); err != nil {
				return err
			}
		}
	}
	return nil
}

// addRule adds a rule; if it has targets, with the anonymous map that it uses.
func (c *Conn) addRule(r Rule, kc *nftables.Chain, sets map[string]*nftables.Set, id uint32) error {
	exprs := slices.Clone(r.exprs)
	for i, e := range exprs {
		if d, ok := e.(*expr.Dynset); ok && sets[d.SetName] != nil {
			bound := *d
			bound.SetID = sets[d.SetName].ID
			exprs[i] = &bound
			continue
		}
		l, ok := e.(*expr.Lookup)
		if !ok {
			continue
		}
		bound := *l
		if l.SetName != "" {
			if s := sets[l.SetName]; s != nil {
				bound.SetID = s.ID
			}
		} else {
			if err := c.addTargets(kc.Table, r.targets, id); err != nil {
				return err
			}
			bound.SetID, bound.SetName = id, anonymousMap
		}
		exprs[i] = &bound
	}
	c.c.AddRule(&nftables.Rule{Table: kc.Table, Chain: kc, Exprs: exprs})
	return nil
}

// anonymousMap is the name that the kernel completes with a number.
const anonymousMap = "__map%d"

func (c *Conn) addTargets(kt *nftables.Table, targets []Target, id uint32) error {
	s := &nftables.Set{
		Table: kt, ID: id, Name: anonymousMap, Anonymous: true, Constant: true, IsMap: true,
		KeyType: nftables.TypeInteger, DataType: targets[0].kind(),
	}
	var els []nftables.SetElement
	for i, t := range targets {
		els = append(els, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: t.pack()})
	}
	if len(els) <= chunk {
		return c.c.AddSet(s, els)
	}
	if err := c.c.AddSet(s, nil); err != nil {
		return err
	}
	// The library refuses to add to an anonymous map that is made; the kernel
	// does not, until a rule uses it.
	named := *s
	named.Anonymous = false
	for some := range slices.Chunk(els, chunk) {
		if err := c.c.SetAddElements(&named, some); err != nil {
			return err
		}
	}
	return nil
}

// kind is the type of a value that holds the target.
func (t Target) kind() nftables.SetDatatype {
	address := nftables.TypeIPAddr
	if t.Address.Is6() {
		address = nftables.TypeIP6Addr
	}
	if t.Port == 0 {
		return address
	}
	return concat(address, nftables.TypeInetService)
}

func kernelMap(m Map, kt *nftables.Table, id uint32) *nftables.Set {
	if m.Key != "" {
		return kernelTyped(m, kt, id)
	}
	key := concat(nftables.TypeInetProto, nftables.TypeInetService)
	switch m.Width {
	case WidthIPv4:
		key = concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	case WidthIPv6:
		key = concat(nftables.TypeIP6Addr, nftables.TypeInetProto, nftables.TypeInetService)
	case WidthDevice:
		key = nftables.TypeIFName
	}
	return &nftables.Set{Table: kt, ID: id, Name: m.Name, IsMap: true, KeyType: key, DataType: nftables.TypeVerdict}
}

// concat is the type of a key or value of several parts. Each part takes whole words.
func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	t, err := nftables.ConcatSetType(types...)
	if err != nil {
		panic(err) // the types are constants above
	}
	return t
}

func kernelChain(ch Chain, kt *nftables.Table) *nftables.Chain {
	kc := &nftables.Chain{Name: ch.Name, Table: kt}
	if ch.Hook == nil {
		return kc
	}
	kc.Type = nftables.ChainType(ch.Hook.Type)
	kc.Hooknum = new(nftables.ChainHook(ch.Hook.Point))
	kc.Priority = new(nftables.ChainPriority(ch.Hook.Priority))
	kc.Policy = new(nftables.ChainPolicyAccept)
	return kc
}

func kernelElements(els []Element) []nftables.SetElement {
	out := make([]nftables.SetElement, 0, len(els))
	for _, e := range els {
		ke := nftables.SetElement{Key: []byte(e.Key), Val: []byte(e.Value)}
		if e.Chain != "" {
			ke.VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.Chain}
		}
		out = append(out, ke)
	}
	return out
}
