// Package filters reads the filters parameter of the Engine API's lists.
//
// It understands both encodings that clients send, {"key":{"value":true}} and
// {"key":["value"]}, and promises that what it accepts is well formed. It does
// not know what a key means: each list names the keys that it takes.
package filters

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// maxSize bounds the encoded parameter.
const maxSize = 64 << 10

// Filters are the values asked for, by key. The zero value matches everything.
type Filters map[string]map[string]bool

// Parse decodes the parameter; an empty one is no filter.
func Parse(encoded string) (Filters, error) {
	if encoded == "" {
		return nil, nil
	}
	malformed := object.Errorf(errdefs.ErrInvalidArgument, "invalid filter")
	if len(encoded) > maxSize {
		return nil, malformed
	}
	var byKey map[string]json.RawMessage
	if err := json.Unmarshal([]byte(encoded), &byKey); err != nil {
		return nil, malformed
	}
	f := make(Filters, len(byKey))
	for key, raw := range byKey {
		values, err := parseValues(raw)
		if err != nil {
			return nil, malformed
		}
		f[key] = values
	}
	return f, nil
}

func parseValues(raw json.RawMessage) (map[string]bool, error) {
	var set map[string]bool
	if err := json.Unmarshal(raw, &set); err == nil {
		maps.DeleteFunc(set, func(_ string, wanted bool) bool { return !wanted })
		return set, nil
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf("decode values: %w", err)
	}
	set = make(map[string]bool, len(list))
	for _, v := range list {
		set[v] = true
	}
	return set, nil
}

// Check refuses keys that are not among the accepted ones.
func (f Filters) Check(accepted ...string) error {
	for _, key := range slices.Sorted(maps.Keys(f)) {
		if !slices.Contains(accepted, key) {
			return object.Errorf(errdefs.ErrInvalidArgument, "invalid filter '%s'", key)
		}
	}
	return nil
}

// Has says whether the key was given with any value.
func (f Filters) Has(key string) bool { return len(f[key]) > 0 }

// Values are the key's values, sorted.
func (f Filters) Values(key string) []string { return slices.Sorted(maps.Keys(f[key])) }

// Exact says whether one of the candidates is a value of the key, or the key
// is not filtered by.
func (f Filters) Exact(key string, candidates ...string) bool {
	return f.match(key, candidates, func(candidate, value string) bool { return candidate == value })
}

// Prefix is Exact for candidates that begin with a value.
func (f Filters) Prefix(key string, candidates ...string) bool {
	return f.match(key, candidates, strings.HasPrefix)
}

// Contains is Exact for candidates that contain a value.
func (f Filters) Contains(key string, candidates ...string) bool {
	return f.match(key, candidates, strings.Contains)
}

func (f Filters) match(key string, candidates []string, matches func(candidate, value string) bool) bool {
	if !f.Has(key) {
		return true
	}
	for value := range f[key] {
		for _, candidate := range candidates {
			if matches(candidate, value) {
				return true
			}
		}
	}
	return false
}

// Labels says whether the labels have every value of the key, each "name" or
// "name=value".
func (f Filters) Labels(key string, labels map[string]string) bool {
	for want := range f[key] {
		name, value, valued := strings.Cut(want, "=")
		got, ok := labels[name]
		if !ok || valued && got != value {
			return false
		}
	}
	return true
}

// Bool is the key's value as a truth value, or missing when it is not filtered
// by. Anything but one clear answer is refused.
func (f Filters) Bool(key string, missing bool) (bool, error) {
	values := f.Values(key)
	if len(values) == 0 {
		return missing, nil
	}
	yes, no := 0, 0
	for _, v := range values {
		switch v {
		case "1", "true", "True":
			yes++
		case "0", "false", "False":
			no++
		}
	}
	if yes+no != len(values) || yes > 0 && no > 0 {
		return false, object.Errorf(errdefs.ErrInvalidArgument, "invalid filter '%s=%v'", key, values)
	}
	return yes > 0, nil
}
