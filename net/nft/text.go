// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// String prints the table in the manner of nft list table. Elements of maps
// are in order of their keys, chains in order of their names, those with a
// hook first: that is, the same for tables that do the same.
func (t Table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "table %s %s {\n", t.Family, t.Name)
	for _, m := range slices.SortedFunc(slices.Values(t.Maps), func(x, y Map) int { return cmp.Compare(x.Name, y.Name) }) {
		b.WriteString(m.text())
	}
	for _, c := range slices.SortedFunc(slices.Values(t.Chains), byHookAndName) {
		b.WriteString(c.text())
	}
	b.WriteString("}\n")
	return b.String()
}

func byHookAndName(x, y Chain) int {
	switch {
	case x.Hook != nil && y.Hook != nil:
		return cmp.Or(cmp.Compare(x.Hook.Point, y.Hook.Point), cmp.Compare(x.Hook.Priority, y.Hook.Priority), cmp.Compare(x.Name, y.Name))
	case x.Hook != nil:
		return -1
	case y.Hook != nil:
		return 1
	}
	return cmp.Compare(x.Name, y.Name)
}

func (m Map) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\t%s %s {\n", m.kind(), m.Name)
	b.WriteString(m.typedText())
	for _, e := range slices.SortedFunc(slices.Values(m.Elements), func(x, y Element) int { return cmp.Compare(x.Key, y.Key) }) {
		fmt.Fprintf(&b, "\t\t%s\n", m.elementText(e))
	}
	b.WriteString("\t}\n")
	return b.String()
}

// keyText reads a packed key: a device; or an address if there is room for one,
// a protocol, a port.
func keyText(key string) string {
	b := []byte(key)
	if len(b) == WidthDevice {
		return fmt.Sprintf("%q", bytes.TrimRight(b, "\x00"))
	}
	var parts []string
	if len(b) == WidthIPv4 || len(b) == WidthIPv6 {
		end := len(b) - WidthPort
		parts, b = append(parts, unpackTarget(b[:end]).Address.String()), b[end:]
	}
	if len(b) != WidthPort {
		return fmt.Sprintf("%x", key)
	}
	return strings.Join(append(parts, protoText(b[0]), fmt.Sprint(binary.BigEndian.Uint16(b[part:]))), " . ")
}

func protoText(p byte) string {
	switch p {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "ipv6-icmp"
	case unix.IPPROTO_SCTP:
		return "sctp"
	}
	return fmt.Sprint(p)
}

func (c Chain) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "\tchain %s {\n", c.Name)
	if c.Hook != nil {
		fmt.Fprintf(&b, "\t\ttype %s hook %s priority %d; policy accept;\n", c.Hook.Type, c.Hook.Point, c.Hook.Priority)
	}
	for _, r := range c.Rules {
		fmt.Fprintf(&b, "\t\t%s\n", r)
	}
	b.WriteString("\t}\n")
	return b.String()
}

// String is the point's name.
func (p Point) String() string {
	names := [...]string{"prerouting", "input", "forward", "output", "postrouting"}
	if int(p) < len(names) {
		return names[p]
	}
	return fmt.Sprintf("hook%d", uint32(p))
}

// String prints the rule. The statements are for a machine of registers; this
// runs them with texts for values.
func (r Rule) String() string {
	p := printer{words: map[uint32]string{}, values: map[uint32][]byte{}, targets: r.targets}
	for _, e := range r.exprs {
		p.step(e)
	}
	return strings.Join(p.out, " ")
}

type printer struct {
	words   map[uint32]string // what each register word holds
	values  map[uint32][]byte // those of them that are immediate
	targets []Target
	out     []string
}

func (p *printer) load(register uint32, text string) { p.words[word(register)] = text }

func (p *printer) say(format string, args ...any) {
	p.out = append(p.out, fmt.Sprintf(format, args...))
}

func (p *printer) step(e expr.Any) {
	switch e := e.(type) {
	case *expr.Meta:
		if e.SourceRegister && e.Key == expr.MetaKeyPKTTYPE {
			p.say("meta pkttype set %s", p.words[word(e.Register)])
			return
		}
		if e.SourceRegister {
			p.say("%s set 0x%08x", metaText(e.Key), binaryutil.NativeEndian.Uint32(p.values[word(e.Register)]))
			return
		}
		p.load(e.Register, metaText(e.Key))
	case *expr.Payload:
		if e.OperationType == expr.PayloadWrite {
			p.say("%s set %s", payloadText(e), p.words[word(e.SourceRegister)])
			return
		}
		p.load(e.DestRegister, payloadText(e))
	case *expr.Fib:
		p.load(e.Register, "fib daddr type")
	case *expr.Ct:
		p.load(e.Register, ctText(e.Key))
	case *expr.Bitwise:
		p.load(e.DestRegister, p.words[word(e.SourceRegister)]+maskText(p.words[word(e.SourceRegister)], e.Mask))
	case *expr.Cmp:
		p.compare(e)
	case *expr.Numgen:
		p.load(e.Register, fmt.Sprintf("numgen %s mod %d", numgenText(e.Type), e.Modulus))
	case *expr.Immediate:
		p.load(e.Register, immediateText(e.Data))
		p.values[word(e.Register)] = e.Data
	case *expr.Lookup:
		p.lookup(e)
	case *expr.NAT:
		to := p.words[word(e.RegAddrMin)]
		if port := p.values[word(e.RegProtoMin)]; e.RegProtoMin != 0 && port != nil {
			to += fmt.Sprintf(" . %d", binary.BigEndian.Uint16(port))
		}
		p.say("%s to %s", natText(e.Type), to)
	case *expr.Dynset:
		p.dynset(e)
	case *expr.Redir:
		p.say("redirect")
	case *expr.Masq:
		p.say("masquerade")
	case *expr.Notrack:
		p.say("notrack")
	case *expr.Reject:
		p.say("%s", rejectText(e))
	case *expr.Verdict:
		p.say("%s", verdictText(e))
	default:
		p.say("unknown %T", e)
	}
}

// immediateText is a target, a port, or the zero that stands for any value.
func immediateText(data []byte) string {
	if len(data) == 1 && data[0] == unix.PACKET_HOST {
		return "host"
	}
	if len(data) == 2 {
		return fmt.Sprint(binary.BigEndian.Uint16(data))
	}
	if len(data) == part && slices.Max(data) == 0 {
		return "0"
	}
	return unpackTarget(data).String()
}

func (p *printer) dynset(e *expr.Dynset) {
	verb, element := "update", p.take(e.SrcRegKey)
	if e.Operation == unix.NFT_DYNSET_OP_ADD {
		verb = "add"
	}
	if e.SrcRegData != 0 {
		element += " : " + p.take(e.SrcRegData)
	}
	p.say("%s @%s { %s }", verb, e.SetName, element)
}

// take is what the registers from one on hold. They hold nothing after.
func (p *printer) take(register uint32) string {
	var key []string
	for w := word(register); p.words[w] != ""; {
		part := p.words[w]
		key = append(key, part)
		delete(p.words, w)
		w++
		if part == "ip6 daddr" || part == netip.IPv6Unspecified().String() {
			w += 3 // 16 bytes
		}
	}
	return strings.Join(key, " . ")
}

func (p *printer) lookup(e *expr.Lookup) {
	key := p.take(e.SourceRegister)
	switch {
	case !e.IsDestRegSet:
		p.say("%s @%s", key, e.SetName)
	case e.DestRegister == unix.NFT_REG_VERDICT:
		p.say("%s vmap @%s", key, e.SetName)
	case p.targets == nil:
		p.load(e.DestRegister, fmt.Sprintf("%s map @%s", key, e.SetName))
	default:
		var targets []string
		for i, t := range p.targets {
			targets = append(targets, fmt.Sprintf("%d : %s", i, t))
		}
		p.load(e.DestRegister, fmt.Sprintf("%s map { %s }", key, strings.Join(targets, ", ")))
	}
}

func (p *printer) compare(e *expr.Cmp) {
	left := p.words[word(e.Register)]
	delete(p.words, word(e.Register))
	name, mask, masked := strings.Cut(left, " & ")
	switch {
	case masked && strings.HasPrefix(name, "ct ") && e.Op == expr.CmpOpEq:
		p.say("%s & %s == 0", name, mask)
		return
	case masked && strings.HasPrefix(name, "ct "):
		p.say("%s %s", name, mask)
		return
	case name == "ip frag-off":
		p.say("%s %s 0x%x", left, equalText(e.Op), e.Data)
	case strings.HasPrefix(name, "ip ") || strings.HasPrefix(name, "ip6 "):
		a, _ := netip.AddrFromSlice(e.Data)
		if masked {
			p.say("%s %s%s%s", name, notText(e.Op), a, mask)
			return
		}
		p.say("%s %s%s", name, notText(e.Op), a)
	case name == "meta nfproto":
		p.say("%s %s%s", name, notText(e.Op), nfprotoText(e.Data))
	case name == "meta l4proto" && len(e.Data) == 1:
		p.say("%s %s%s", name, notText(e.Op), protoText(e.Data[0]))
	case name == "tcp flags":
		p.say("%s & %s %s %d", name, mask, equalText(e.Op), e.Data[0])
	case name == "ether daddr":
		p.say("%s %s%s", name, notText(e.Op), net.HardwareAddr(e.Data))
	case masked && strings.HasPrefix(name, "th "):
		p.say("%s %s 0x%x", left, equalText(e.Op), e.Data)
	case name == "fib daddr type":
		if bytes.Equal(e.Data, binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)) {
			p.say("%s %slocal", name, notText(e.Op))
			return
		}
		p.say("%s %s%x", name, notText(e.Op), e.Data)
	case strings.HasPrefix(name, "th "), strings.HasPrefix(name, "icmp "), name == "tcp sequence":
		p.say("%s %s%d", name, notText(e.Op), new(big.Int).SetBytes(e.Data))
	default:
		if value, ok := frameValue(name, e.Data); ok {
			p.say("%s %s%s", name, notText(e.Op), value)
			return
		}
		p.say("%s %s%q", name, notText(e.Op), bytes.TrimRight(e.Data, "\x00"))
	}
}

func natText(t expr.NATType) string {
	if t == expr.NATTypeSourceNAT {
		return "snat"
	}
	return "dnat"
}

func notText(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!= "
	}
	return ""
}

func equalText(op expr.CmpOp) string {
	if op == expr.CmpOpNeq {
		return "!="
	}
	return "=="
}

func nfprotoText(b []byte) string {
	switch {
	case bytes.Equal(b, []byte{unix.NFPROTO_IPV4}):
		return "ipv4"
	case bytes.Equal(b, []byte{unix.NFPROTO_IPV6}):
		return "ipv6"
	}
	return fmt.Sprintf("%x", b)
}

func metaText(k expr.MetaKey) string {
	switch k {
	case expr.MetaKeyIIFNAME:
		return "iifname"
	case expr.MetaKeyOIFNAME:
		return "oifname"
	case expr.MetaKeyL4PROTO:
		return "meta l4proto"
	case expr.MetaKeyNFPROTO:
		return "meta nfproto"
	case expr.MetaKeyMARK:
		return "meta mark"
	default:
		return fmt.Sprintf("meta %d", k)
	}
}

func payloadText(e *expr.Payload) string {
	if name, ok := frameFields()[[3]uint32{uint32(e.Base), e.Offset, e.Len}]; ok {
		return name
	}
	switch {
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 12 && e.Len == 4:
		return "ip saddr"
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 16 && e.Len == 4:
		return "ip daddr"
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 8 && e.Len == 16:
		return "ip6 saddr"
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == 24 && e.Len == 16:
		return "ip6 daddr"
	case e.Base == expr.PayloadBaseTransportHeader:
		return transportText(e)
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == packetID && e.Len == 2:
		return "ip id"
	case e.Base == expr.PayloadBaseNetworkHeader && e.Offset == fragmentField && e.Len == 2:
		return "ip frag-off"
	case e.Base == expr.PayloadBaseLLHeader && e.Offset == 0 && e.Len == 6:
		return "ether daddr"
	}
	return fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset, e.Len)
}

func transportText(e *expr.Payload) string {
	switch {
	case e.Offset == sourcePort && e.Len == 2:
		return "th sport"
	case e.Offset == destinationPort && e.Len == 2:
		return "th dport"
	case e.Offset == blamedPort && e.Len == 2:
		return "icmp th dport"
	case e.Offset == icmpType && e.Len == 1:
		return "icmp type"
	case e.Offset == sequenceOffset && e.Len == 4:
		return "tcp sequence"
	case e.Offset == flagsOffset && e.Len == 1:
		return "tcp flags"
	}
	return fmt.Sprintf("@%d,%d,%d", e.Base, e.Offset, e.Len)
}

func ctText(k expr.CtKey) string {
	switch k {
	case expr.CtKeySTATE:
		return "ct state"
	case expr.CtKeySTATUS:
		return "ct status"
	default:
		return fmt.Sprintf("ct %d", k)
	}
}

func maskText(name string, mask []byte) string {
	switch name {
	case "ip saddr", "ip daddr", "ip6 saddr", "ip6 daddr":
		ones, _ := net.IPMask(mask).Size()
		return fmt.Sprintf(" & /%d", ones)
	case "tcp flags":
		if bytes.Equal(mask, []byte{flagSYN}) {
			return " & syn"
		}
		if bytes.Equal(mask, []byte{flagRST}) {
			return " & rst"
		}
	case "ct status":
		if bytes.Equal(mask, binaryutil.NativeEndian.PutUint32(statusDNAT)) {
			return " & dnat"
		}
		if bytes.Equal(mask, binaryutil.NativeEndian.PutUint32(statusConfirmed)) {
			return " & confirmed"
		}
	case "ct state":
		if bytes.Equal(mask, binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)) {
			return " & established,related"
		}
	}
	return fmt.Sprintf(" & 0x%x", mask)
}

func numgenText(kind uint32) string {
	if kind == unix.NFT_NG_RANDOM {
		return "random"
	}
	return "inc"
}

func rejectText(e *expr.Reject) string {
	if e.Type == unix.NFT_REJECT_TCP_RST {
		return "reject with tcp reset"
	}
	return fmt.Sprintf("reject %d %d", e.Type, e.Code)
}

func verdictText(v *expr.Verdict) string {
	switch v.Kind {
	case expr.VerdictAccept:
		return "accept"
	case expr.VerdictDrop:
		return "drop"
	case expr.VerdictJump:
		return "jump " + v.Chain
	case expr.VerdictGoto:
		return "goto " + v.Chain
	case expr.VerdictReturn:
		return "return"
	default:
		return fmt.Sprintf("verdict %d", v.Kind)
	}
}

// String is "address . port", as nft writes it, or the address alone.
func (t Target) String() string {
	if t.Port == 0 {
		return t.Address.String()
	}
	return fmt.Sprintf("%s . %d", t.Address, t.Port)
}
