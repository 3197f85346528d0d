package object

import (
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Constraint is one placement constraint of a service, as in
// "node.labels.zone==a".
type Constraint struct {
	key, value string
	not        bool
}

// ParseConstraints reads placement constraints. The errors are for the user.
func ParseConstraints(exprs []string) ([]Constraint, error) {
	cs := make([]Constraint, 0, len(exprs))
	for _, e := range exprs {
		c := Constraint{}
		op := "=="
		if i, j := strings.Index(e, "=="), strings.Index(e, "!="); j >= 0 && (i < 0 || j < i) {
			op, c.not = "!=", true
		}
		key, value, ok := strings.Cut(e, op)
		if !ok {
			return nil, Errorf(errdefs.ErrInvalidArgument, "constraint expected one operator from ==, !=")
		}
		c.key, c.value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !validKey(c.key) {
			return nil, Errorf(errdefs.ErrInvalidArgument, "key '%s' is invalid", c.key)
		}
		if !validValue(c.value) {
			return nil, Errorf(errdefs.ErrInvalidArgument, "value '%s' is invalid", c.value)
		}
		cs = append(cs, c)
	}
	return cs, nil
}

func letter(b byte) bool { return 'a' <= b|0x20 && b|0x20 <= 'z' }
func digit(b byte) bool  { return '0' <= b && b <= '9' }

func validKey(s string) bool {
	if len(s) < 2 || !letter(s[0]) && s[0] != '_' {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !letter(s[i]) && !digit(s[i]) && !strings.ContainsRune("-_.", rune(s[i])) {
			return false
		}
	}
	return true
}

func validValue(s string) bool {
	for i := range len(s) {
		if !letter(s[i]) && !digit(s[i]) && !strings.ContainsRune(":-_ \t\n\f\r.*()?+[]\\^$|/", rune(s[i])) {
			return false
		}
	}
	return s != ""
}

// Match reports whether a node satisfies all of the constraints. An unknown
// key never matches.
func Match(cs []Constraint, n *Node) bool {
	for i := range cs {
		if !cs[i].match(n) {
			return false
		}
	}
	return true
}

func (c *Constraint) match(n *Node) bool {
	is := func(v string) bool { return strings.EqualFold(v, c.value) != c.not }
	switch key := strings.ToLower(c.key); key {
	case "node.id":
		return is(n.ID)
	case "node.hostname":
		return is(n.Description.Hostname)
	case "node.ip":
		return c.matchAddress(n.Status.Addr)
	case "node.role":
		return is(string(n.Spec.Role))
	case "node.platform.os":
		return is(n.Description.Platform.OS)
	case "node.platform.arch":
		return is(n.Description.Platform.Architecture)
	default:
		// The names of labels keep their case.
		const node, engine = "node.labels.", "engine.labels."
		if strings.HasPrefix(key, node) && len(key) > len(node) {
			return is(n.Spec.Labels[c.key[len(node):]])
		}
		if strings.HasPrefix(key, engine) && len(key) > len(engine) {
			return is(n.Description.Engine.Labels[c.key[len(engine):]])
		}
		return false
	}
}

func (c *Constraint) matchAddress(s string) bool {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return c.not // a node without an address is not at the address
	}
	if want, err := netip.ParseAddr(c.value); err == nil {
		return (addr.Unmap() == want.Unmap()) != c.not
	}
	if want, err := netip.ParsePrefix(c.value); err == nil {
		return want.Contains(addr.Unmap()) != c.not
	}
	return false
}

// Label is the value of a spread descriptor ("node.labels.zone") on a node; a
// label that is not there is "". ok is false if it is not a descriptor.
func Label(descriptor string, n *swarm.Node) (value string, ok bool) {
	const node, engine = "node.labels.", "engine.labels."
	switch lower := strings.ToLower(descriptor); {
	case strings.HasPrefix(lower, node) && len(lower) > len(node):
		return n.Spec.Labels[descriptor[len(node):]], true
	case strings.HasPrefix(lower, engine) && len(lower) > len(engine):
		return n.Description.Engine.Labels[descriptor[len(engine):]], true
	default:
		return "", false
	}
}
