package engine

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"

	"skep/admin/filters"
)

// param is a value in the query; the body is never looked at.
func param(r *http.Request, key string) string { return r.URL.Query().Get(key) }

// flag is a truth value in the query, in any of the forms that clients send.
func flag(r *http.Request, key string) bool {
	switch strings.ToLower(strings.TrimSpace(param(r, key))) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// flagOr is flag with a value for when the key is missing.
func flagOr(r *http.Request, key string, missing bool) bool {
	if !r.URL.Query().Has(key) {
		return missing
	}
	return flag(r, key)
}

// integer is a number in the query, or missing when there is none.
func integer(r *http.Request, key string, missing int) (int, error) {
	s := param(r, key)
	if s == "" {
		return missing, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return 0, invalid("invalid %s '%s': %v", key, s, err)
	}
	return n, nil
}

// instant is a time in the query: seconds since 1970 with an optional
// fraction, or RFC 3339. Missing and "0" are the zero time.
func instant(r *http.Request, key string) (time.Time, error) {
	s := param(r, key)
	if s == "" || s == "0" {
		return time.Time{}, nil
	}
	t, ok := parseInstant(s)
	if !ok {
		return t, invalid("invalid %s '%s': want seconds since 1970 or RFC 3339", key, s)
	}
	return t, nil
}

func parseInstant(s string) (time.Time, bool) {
	if t, err := time.Parse(time.RFC3339Nano, s); err == nil {
		return t, true
	}
	whole, fraction, _ := strings.Cut(s, ".")
	sec, err := strconv.ParseInt(whole, 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	nsec, err := strconv.ParseUint((fraction + "000000000")[:9], 10, 32)
	return time.Unix(sec, int64(nsec)), err == nil
}

// objectVersion is the version of the object of the given kind that the client
// means to change.
func objectVersion(r *http.Request, kind string) (swarm.Version, error) {
	s := r.URL.Query().Get("version")
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return swarm.Version{}, invalid("invalid %s version '%s': %v", kind, s, err)
	}
	return swarm.Version{Index: n}, nil
}

// filterBy reads the filters parameter; keys that are not accepted are refused.
func filterBy(r *http.Request, accepted ...string) (filters.Filters, error) {
	f, err := filters.Parse(param(r, "filters"))
	if err != nil {
		return nil, err
	}
	return f, f.Check(accepted...)
}

// nameAndVerb splits the wildcard of a route whose names hold slashes:
// "reg.example:5000/db/json" is the name "reg.example:5000/db" and the verb
// "json". Without a slash there is no verb.
func nameAndVerb(r *http.Request, wildcard string) (name, verb string) {
	path := r.PathValue(wildcard)
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return path, ""
	}
	return path[:i], path[i+1:]
}
