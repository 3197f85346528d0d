package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// maxDepth is how deep a node file may nest; the schema needs five levels.
const maxDepth = 16

// maxProblems is how many problems are told of one file.
const maxProblems = 100

// Problem is one thing that is wrong with a node file.
type Problem struct {
	Line, Column int
	// Key is the path of the key, such as "swarm.init.cert_expiry"; empty for
	// the file as a whole.
	Key string
	// Text says what is wrong and what is wanted.
	Text string
}

// Error is everything that is wrong with a node file, in the file's order.
type Error struct {
	Name     string // of the file
	Problems []Problem
}

func (e *Error) Error() string {
	var b strings.Builder
	for i, p := range e.Problems {
		if i == maxProblems {
			fmt.Fprintf(&b, "\n%s: and %d more problems", e.Name, len(e.Problems)-i)
			break
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s:%d:%d: ", e.Name, p.Line, p.Column)
		if p.Key != "" {
			b.WriteString(p.Key + ": ")
		}
		b.WriteString(p.Text)
	}
	return b.String()
}

// Parse decodes a node file. The name is used in messages only.
func Parse(b []byte, name string) (*Config, error) {
	d := &decoder{nodes: map[string]*yaml.Node{}}
	c := Default()
	if len(b) > MaxSize {
		d.problems = append(d.problems, Problem{1, 1, "", fmt.Sprintf("is larger than %d bytes", MaxSize)})
	} else if root := d.document(b); root != nil {
		d.config(root, c)
		d.check(c)
	}
	if len(d.problems) == 0 {
		return c, nil
	}
	slices.SortStableFunc(d.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return nil, &Error{Name: name, Problems: d.problems}
}

// decoder walks the nodes of a file and gathers its problems.
type decoder struct {
	problems []Problem
	// nodes are the values by the paths of their keys, for the checks that
	// look at several of them.
	nodes map[string]*yaml.Node
}

// has tells whether the file has a value for the key.
func (d *decoder) has(key string) bool { return d.nodes[key] != nil }

func (d *decoder) add(n *yaml.Node, key, format string, args ...any) {
	p := Problem{Line: 1, Column: 1, Key: key, Text: fmt.Sprintf(format, args...)}
	if n != nil {
		p.Line, p.Column = n.Line, n.Column
	}
	d.problems = append(d.problems, p)
}

// document is the root of the one document that b holds, or nil if there is
// none or it may not be looked at.
func (d *decoder) document(b []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		d.syntax(err)
		return nil
	default:
		d.add(&second, "", "a second document; want one")
		return nil
	}
	if len(doc.Content) != 1 || !d.plain(doc.Content[0], 0) {
		return nil
	}
	return doc.Content[0]
}

// syntax reports an error of the YAML parser, which has the line in its text.
func (d *decoder) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if rest, ok := strings.CutPrefix(text, "line "); ok {
		if num, after, ok := strings.Cut(rest, ": "); ok {
			if n, err := strconv.Atoi(num); err == nil {
				line, text = max(n, 1), after
			}
		}
	}
	d.problems = append(d.problems, Problem{line, 1, "", "not YAML: " + text})
}

// plain refuses what the node file has no use for and bombs are made of. It
// stops at the first of them.
func (d *decoder) plain(n *yaml.Node, depth int) bool {
	switch {
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		d.add(n, "", "anchors and aliases are not allowed; write the value out")
		return false
	case depth > maxDepth:
		d.add(n, "", "nested too deeply")
		return false
	case n.Style&yaml.TaggedStyle != 0:
		d.add(n, "", "tags are not allowed; write the plain value")
		return false
	}
	for _, c := range n.Content {
		if !d.plain(c, depth+1) {
			return false
		}
	}
	return true
}

// field is a key of a mapping and what to do with its value.
type field struct {
	name string
	read func(n *yaml.Node, key string)
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// mapping reads a mapping that has the given keys and no others.
func (d *decoder) mapping(n *yaml.Node, key string, fields ...field) {
	d.pairs(n, key, func(k, v *yaml.Node) {
		at := join(key, k.Value)
		i := slices.IndexFunc(fields, func(f field) bool { return f.name == k.Value })
		if i < 0 {
			names := make([]string, len(fields))
			for i, f := range fields {
				names[i] = f.name
			}
			d.add(k, clip(at), "unknown key; want one of %s", strings.Join(names, ", "))
			return
		}
		d.nodes[at] = v
		fields[i].read(v, at)
	})
}

// pairs calls f for each key of a mapping and its value. An absent value is an
// empty mapping.
func (d *decoder) pairs(n *yaml.Node, key string, f func(k, v *yaml.Node)) {
	if null(n) {
		return
	}
	if n.Kind != yaml.MappingNode {
		d.add(n, key, "is %s; want a mapping (key: value)", kind(n))
		return
	}
	first := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			d.add(k, key, "a key is %s; want a string", kind(k))
			continue
		}
		if line, dup := first[k.Value]; dup {
			d.add(k, clip(join(key, k.Value)), "given twice; the first is in line %d", line)
			continue
		}
		first[k.Value] = k.Line
		f(k, v)
	}
}

// items calls f for each item of a list. An absent value is an empty list.
func (d *decoder) items(n *yaml.Node, key string, f func(n *yaml.Node, key string)) {
	if null(n) {
		return
	}
	if n.Kind != yaml.SequenceNode {
		d.add(n, key, "is %s; want a list", kind(n))
		return
	}
	for i, item := range n.Content {
		at := key + "[" + strconv.Itoa(i) + "]"
		d.nodes[at] = item
		f(item, at)
	}
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// kind names what a node is, in words.
func kind(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode, yaml.DocumentNode, yaml.AliasNode:
	}
	switch n.ShortTag() {
	case "!!null":
		return "empty"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "a string"
}

// clip shortens text that comes from the file and may be anything.
func clip(s string) string {
	const most = 80
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	for _, r := range s {
		if r < ' ' || r == 0x7f {
			return strconv.Quote(s)
		}
	}
	return s
}
