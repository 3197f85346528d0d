package filters_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"skep/admin/filters"
)

func TestParse_TakesBothEncodings(t *testing.T) {
	tests := []struct {
		encoded string
		want    filters.Filters
	}{
		{"", nil},
		{"{}", filters.Filters{}},
		{`{"name":{"web":true}}`, filters.Filters{"name": {"web": true}}},
		{`{"name":["web","db"]}`, filters.Filters{"name": {"web": true, "db": true}}},
		{`{"name":{"web":false}}`, filters.Filters{"name": {}}},
		{`{"name":{},"id":[]}`, filters.Filters{"name": {}, "id": {}}},
	}
	for _, tt := range tests {
		got, err := filters.Parse(tt.encoded)
		if err != nil {
			t.Errorf("%s: %v", tt.encoded, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.encoded, diff)
		}
	}
	for _, encoded := range []string{"{bad", `{"a":"b"}`, `{"a":[1]}`, `{"a":{"b":2}}`, `[]`, `{} {}`, `{"a":["` + strings.Repeat("x", 1<<17) + `"]}`} {
		if _, err := filters.Parse(encoded); err == nil || err.Error() != "invalid filter" || !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%.20s: %v", encoded, err)
		}
	}
}

func TestFilters_Match(t *testing.T) {
	f, err := filters.Parse(`{"name":["web","db"],"label":["a=1","b"],"on":["true"],"off":["0"],"both":["1","0"],"odd":["x"]}`)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{
		"exact":             f.Exact("name", "db"),
		"not exact":         !f.Exact("name", "webs"),
		"any candidate":     f.Exact("name", "x", "web"),
		"no such key":       f.Exact("id", "anything"),
		"prefix":            f.Prefix("name", "webs") && !f.Prefix("name", "a-web"),
		"contains":          f.Contains("name", "a-web-b") && !f.Contains("name", "we"),
		"all labels":        f.Labels("label", map[string]string{"a": "1", "b": "any", "c": ""}),
		"label's value":     !f.Labels("label", map[string]string{"a": "2", "b": ""}),
		"label is missing":  !f.Labels("label", map[string]string{"a": "1"}),
		"key is not there":  f.Labels("other", nil),
		"zero value":        filters.Filters(nil).Exact("name", "x") && !filters.Filters(nil).Has("name"),
		"accepted keys":     f.Check("name", "label", "on", "off", "both", "odd") == nil,
		"first unknown key": f.Check("name", "on", "off", "both", "odd").Error() == "invalid filter 'label'",
	}
	for name, ok := range tests {
		if !ok {
			t.Error(name)
		}
	}
	for key, want := range map[string]bool{"on": true, "off": false} {
		if got, err := f.Bool(key, !want); err != nil || got != want {
			t.Errorf("%s is %v, %v", key, got, err)
		}
	}
	for _, key := range []string{"both", "odd"} {
		if _, err := f.Bool(key, false); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"", "{}", `{"name":{"web":true}}`, `{"name":["web"]}`, `{"a":null}`, `{"a":{"b":null}}`, "{bad"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, encoded string) {
		got, err := filters.Parse(encoded)
		if err != nil {
			if !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Fatalf("kind of %v", err)
			}
			return
		}
		for key := range got {
			if got.Check(key) != nil && len(got) == 1 {
				t.Errorf("key %q is there and is not", key)
			}
			for _, v := range got.Values(key) {
				if !got.Exact(key, v) || !got.Prefix(key, v+"x") {
					t.Errorf("value %q of %q does not match itself", v, key)
				}
			}
		}
	})
}
