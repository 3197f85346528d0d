package engine

import (
	"bytes"
	"encoding"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"reflect"
	"strings"
	"unicode"

	"github.com/moby/moby/api/types/registry"
)

// maxBody bounds a JSON body; the largest is a config of 1000 KiB in base64.
const maxBody = 4 << 20

// maxDepth bounds the nesting of a JSON body.
const maxDepth = 64

// decode reads the request's body as one JSON value. Keys that T does not have
// are ignored, as newer clients send them; a key that comes twice is refused,
// also in another spelling, so that nobody can read the body in another way.
func decode[T any](r *http.Request) (T, error) {
	var v T
	if err := requireJSON(r); err != nil {
		return v, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return v, invalid("request body larger than %d bytes", tooLarge.Limit)
		}
		return v, fmt.Errorf("read request body: %w", err)
	}
	return parseBody[T](body)
}

func parseBody[T any](body []byte) (T, error) {
	var v T
	switch {
	case len(body) > maxBody:
		return v, invalid("request body larger than %d bytes", maxBody)
	case len(bytes.TrimSpace(body)) == 0:
		return v, invalid("invalid JSON: got EOF while reading request body")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&v); err != nil {
		return v, invalid("invalid JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return v, invalid("unexpected content after JSON")
	}
	d = json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := unambiguous(d, reflect.TypeFor[T](), 0); err != nil {
		return v, err
	}
	return v, nil
}

// requireJSON refuses other content types, which also keeps browsers from
// posting here without asking first.
func requireJSON(r *http.Request) error {
	given := r.Header.Get("Content-Type")
	if given == "" && r.ContentLength == 0 {
		return nil
	}
	if kind, _, err := mime.ParseMediaType(given); err != nil || kind != "application/json" {
		return invalid("unsupported Content-Type header (%s): must be 'application/json'", given)
	}
	return nil
}

// unambiguous reads one value of type t (nil if unknown) and refuses repeated keys.
func unambiguous(d *json.Decoder, t reflect.Type, depth int) error {
	if depth > maxDepth {
		return invalid("invalid JSON: nested deeper than %d", maxDepth)
	}
	token, err := d.Token()
	if err != nil {
		return invalid("invalid JSON: %v", err)
	}
	t = bare(t)
	switch token {
	case json.Delim('{'):
		return unambiguousObject(d, t, depth)
	case json.Delim('['):
		for d.More() {
			if err = unambiguous(d, element(t), depth+1); err != nil {
				return err
			}
		}
		_, err = d.Token()
	}
	return err
}

func unambiguousObject(d *json.Decoder, t reflect.Type, depth int) error {
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return invalid("invalid JSON: %v", err)
		}
		key, _ := token.(string)
		identity, value := key, element(t)
		if t != nil && t.Kind() == reflect.Struct {
			identity, value = folded(key), fieldType(t, key)
		}
		if seen[identity] {
			return invalid("invalid JSON: duplicate key %q", key)
		}
		seen[identity] = true
		if err := unambiguous(d, value, depth+1); err != nil {
			return err
		}
	}
	_, err := d.Token()
	return err
}

// bare is the type below pointers, or nil where a type decodes itself.
func bare(t reflect.Type) reflect.Type {
	for t != nil {
		p := reflect.PointerTo(t)
		if p.Implements(reflect.TypeFor[json.Unmarshaler]()) || p.Implements(reflect.TypeFor[encoding.TextUnmarshaler]()) {
			return nil
		}
		if t.Kind() != reflect.Pointer {
			return t
		}
		t = t.Elem()
	}
	return nil
}

func element(t reflect.Type) reflect.Type {
	if t == nil {
		return nil
	}
	switch t.Kind() {
	case reflect.Map, reflect.Slice, reflect.Array:
		return t.Elem()
	default:
		return nil
	}
}

// folded is the one spelling of all keys that encoding/json takes for the same.
func folded(key string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		return least
	}, key)
}

// fieldType is the type of the field that encoding/json would put key in, or nil.
func fieldType(t reflect.Type, key string) reflect.Type {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" {
			if f.Anonymous {
				continue
			}
			name = f.Name
		}
		if strings.EqualFold(name, key) {
			return f.Type
		}
	}
	return nil
}

// registryAuth reads the credentials that come in a header. None, and empty
// ones, are nil.
func registryAuth(r *http.Request) (*registry.AuthConfig, error) {
	encoded := r.Header.Get(registry.AuthHeader)
	if encoded == "" {
		return nil, nil
	}
	// Clients differ in the alphabet and in padding.
	encoded = strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(encoded, "="))
	plain, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return nil, invalid("invalid %s header: %v", registry.AuthHeader, err)
	}
	auth, err := parseBody[registry.AuthConfig](plain)
	if err != nil {
		return nil, invalid("invalid %s header: %v", registry.AuthHeader, err)
	}
	if auth == (registry.AuthConfig{}) {
		return nil, nil
	}
	return &auth, nil
}
