package engine

import (
	"strings"
	"time"

	"skep/admin/filters"
)

// labelled says whether labels fit the filters "label", all of whose values
// they must have, and "label!", none of whose values they may have.
func labelled(f filters.Filters, labels map[string]string) bool {
	if !f.Labels("label", labels) {
		return false
	}
	for _, v := range f.Values("label!") {
		name, value, valued := strings.Cut(v, "=")
		if got, ok := labels[name]; ok && (!valued || got == value) {
			return false
		}
	}
	return true
}

// untilFilter is the time before which things must have been made; zero when
// it does not matter. Values are ages, as "24h", or times.
func untilFilter(f filters.Filters, now time.Time) (time.Time, error) {
	values := f.Values("until")
	switch len(values) {
	case 0:
		return time.Time{}, nil
	case 1:
	default:
		return time.Time{}, invalid("more than one until filter specified")
	}
	v := values[0]
	if age, err := time.ParseDuration(v); err == nil {
		return now.Add(-age), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02Z07:00", time.DateOnly} {
		if t, err := time.Parse(layout, v); err == nil {
			return t, nil
		}
	}
	if t, ok := parseInstant(v); ok {
		return t, nil
	}
	return time.Time{}, invalid("invalid filter 'until=%s'", v)
}
