package object

import (
	"strings"

	"github.com/moby/moby/api/types/swarm"
)

// PlatformMatches reports whether a node's platform is the one that is wanted.
// What is empty in want is any; uname's names and Go's are the same.
func PlatformMatches(want, have swarm.Platform) bool {
	return (want.OS == "" || strings.EqualFold(want.OS, have.OS)) &&
		(want.Architecture == "" || architecture(want.Architecture) == architecture(have.Architecture))
}

func architecture(s string) string {
	switch s = strings.ToLower(s); s {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	default:
		return s
	}
}
