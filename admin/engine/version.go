package engine

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/common"
)

// The versions of the Engine API that are spoken, as the minor of 1.x.
const (
	minVersion = 24
	maxVersion = 51
)

func versionString(minor int) string { return fmt.Sprintf("1.%d", minor) }

type versionKey struct{}

// minorOf is the version that the client speaks, as the minor of 1.x.
func minorOf(r *http.Request) int {
	if minor, ok := r.Context().Value(versionKey{}).(int); ok {
		return minor
	}
	return maxVersion
}

// Versioned takes the version off the path of requests to next and refuses the
// ones that are not spoken. It also writes the headers of every reply.
func (a *API) Versioned(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Api-Version", versionString(maxVersion))
		h.Set("Docker-Experimental", "false")
		h.Set("Ostype", "linux")
		h.Set("Server", "Skep/"+a.Version+" (linux)")
		version, rest, ok := cutVersion(r.URL.Path)
		if !ok {
			next.ServeHTTP(w, r)
			return
		}
		minor, refusal := parseVersion(version)
		if refusal != "" {
			_ = writeJSON(w, http.StatusBadRequest, common.ErrorResponse{Message: refusal})
			return
		}
		r2 := r.WithContext(context.WithValue(r.Context(), versionKey{}, minor))
		r2.URL = new(url.URL)
		*r2.URL = *r.URL
		r2.URL.Path = rest
		if r.URL.RawPath != "" {
			_, r2.URL.RawPath, _ = cutVersion(r.URL.RawPath)
		}
		next.ServeHTTP(w, r2)
	})
}

// cutVersion splits "/v1.44/info" into "1.44" and "/info".
func cutVersion(path string) (version, rest string, ok bool) {
	tail, ok := strings.CutPrefix(path, "/v")
	if !ok {
		return "", path, false
	}
	version, rest, ok = strings.Cut(tail, "/")
	if !ok || version == "" || strings.Trim(version, "0123456789.") != "" {
		return "", path, false
	}
	return version, "/" + rest, true
}

// parseVersion is the minor of a version that is spoken, or why it is not.
func parseVersion(version string) (minor int, refusal string) {
	major, rest, ok := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	m, errMinor := strconv.Atoi(rest)
	switch {
	case !ok || err != nil || errMinor != nil:
		return 0, fmt.Sprintf("client version %s is not a version", version)
	case n < 1 || n == 1 && m < minVersion:
		return 0, fmt.Sprintf("client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", version, versionString(minVersion))
	case n > 1 || m > maxVersion:
		return 0, fmt.Sprintf("client version %s is too new. Maximum supported API version is %s", version, versionString(maxVersion))
	}
	return m, ""
}
