package config

import (
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// text reads a string that is not empty. An absent value leaves out as it is.
func (d *decoder) text(n *yaml.Node, key, want string, out *string, valid func(string) bool) {
	switch {
	case null(n):
		return
	case n.Kind != yaml.ScalarNode:
		d.add(n, key, "is %s; want %s", kind(n), want)
	case n.ShortTag() != "!!str":
		d.add(n, key, "is %s; want %s (put it in quotes)", kind(n), want)
	case n.Value == "" || (valid != nil && !valid(n.Value)):
		d.add(n, key, "%q; want %s", clip(n.Value), want)
	default:
		*out = n.Value
	}
}

// str is a field that holds a string.
func (d *decoder) str(name, want string, out *string, valid func(string) bool) field {
	return field{name, func(n *yaml.Node, key string) { d.text(n, key, want, out, valid) }}
}

// strs is a field that holds a list of strings, each of them once.
func (d *decoder) strs(name, want string, out *[]string, valid func(string) bool) field {
	return field{name, func(n *yaml.Node, key string) {
		*out = nil
		d.items(n, key, func(n *yaml.Node, key string) {
			var s string
			if null(n) {
				d.add(n, key, "is empty; want %s", want)
				return
			}
			d.text(n, key, want, &s, valid)
			if s != "" && slices.Contains(*out, s) {
				d.add(n, key, "%q is listed twice", clip(s))
				return
			}
			if s != "" {
				*out = append(*out, s)
			}
		})
	}}
}

// oneOf is a field that holds one of a few words.
func (d *decoder) oneOf(name string, out *string, words ...string) field {
	return d.str(name, strings.Join(words, ", "), out, func(s string) bool { return slices.Contains(words, s) })
}

// material is a field that holds a path or the thing itself.
func (d *decoder) material(name, what string, out *Material) field {
	return field{name, func(n *yaml.Node, key string) {
		if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" && Material(n.Value).inline() {
			*out = Material(n.Value)
			return
		}
		var s string
		d.text(n, key, "the path of "+what+", or "+what+" itself", &s, absolute)
		*out = Material(s)
	}}
}

func (d *decoder) boolean(name string, out *bool) field {
	return field{name, func(n *yaml.Node, key string) {
		if null(n) {
			return
		}
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(out) != nil {
			d.add(n, key, "is %s; want true or false", kind(n))
		}
	}}
}

// integer is a field that holds a number between least and most.
func (d *decoder) integer(name string, least, most int, out func(int)) field {
	return field{name, func(n *yaml.Node, key string) {
		if null(n) {
			return
		}
		v, err := strconv.Atoi(n.Value)
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
			d.add(n, key, "is %s; want a number from %d to %d", kind(n), least, most)
			return
		}
		if v < least || v > most {
			d.add(n, key, "%d; want a number from %d to %d", v, least, most)
			return
		}
		out(v)
	}}
}

// duration is a field that holds a length of time such as 720h.
func (d *decoder) duration(name string, least time.Duration, out *time.Duration) field {
	return field{name, func(n *yaml.Node, key string) {
		var s string
		d.text(n, key, "a duration such as 720h", &s, func(s string) bool {
			_, err := time.ParseDuration(s)
			return err == nil
		})
		if s == "" {
			return
		}
		v, err := time.ParseDuration(s)
		if err != nil || v < least {
			d.add(n, key, "%s is too short; want at least %s", clip(s), least)
			return
		}
		*out = v
	}}
}

// prefix is a field that holds an address range such as 10.0.0.0/16.
func (d *decoder) prefix(name, want string, out *netip.Prefix, valid func(netip.Prefix) bool) field {
	var s string
	read := d.str(name, want, &s, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && valid(p)
	}).read
	return field{name, func(n *yaml.Node, key string) {
		if read(n, key); s != "" {
			*out = netip.MustParsePrefix(s)
		}
	}}
}

func absolute(s string) bool {
	return path.IsAbs(s) && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f })
}

func address(s string) bool {
	a, err := netip.ParseAddr(s)
	return err == nil && !a.Is4In6()
}

// iface tells whether s can be the name of a network interface.
func iface(s string) bool {
	return s != "" && len(s) < 16 && s != "." && s != ".." &&
		!strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '/' || r == ':' || r >= 0x7f })
}

func addressOrIface(s string) bool { return address(s) || iface(s) && !numeric(s) }

// numeric tells whether s looks like an address that is wrong rather than a name.
func numeric(s string) bool { return strings.Trim(s, "0123456789.") == "" }

func port(s string) bool {
	p, err := strconv.ParseUint(s, 10, 16)
	return err == nil && p != 0 && strconv.FormatUint(p, 10) == s
}

// listenAddress is host:port where host is an address or an interface.
func listenAddress(s string) bool {
	h, p, err := net.SplitHostPort(s)
	return err == nil && port(p) && (addressOrIface(h) || h == "")
}

// hostPort is host:port where host is an address or a name.
func hostPort(s string) bool {
	h, p, err := net.SplitHostPort(s)
	return err == nil && port(p) && (address(h) || hostname(h))
}

// hostname follows RFC 1123.
func hostname(s string) bool {
	if len(s) > 253 || numeric(s) && strings.Contains(s, ".") {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
				return false
			}
		}
	}
	return true
}

// registryHost is the host part of an image's name.
func registryHost(s string) bool { return hostname(s) || address(s) || hostPort(s) }

// mirrorURL is where a mirror is.
func mirrorURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "https" || u.Scheme == "http") && registryHost(u.Host) &&
		u.User == nil && u.RawQuery == "" && u.Fragment == ""
}
