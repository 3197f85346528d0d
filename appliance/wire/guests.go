package wire

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// GuestRequest asks the leader for a place of a container on an attachable
// network of the swarm. It is the node's until it is released.
type GuestRequest struct {
	// ID is the guest's, which the node makes up: who asks twice with the same
	// asks once.
	ID                string
	ContainerID, Name string
	Network           string // its name, its ID, or a beginning of that
	Aliases           []string
	// Wanted are the addresses that it is to have; the rest is chosen.
	Wanted []netip.Addr
}

// GuestReply is the place.
type GuestReply struct {
	Network, NetworkName string // ID and name
	Addresses            []netip.Prefix
}

// GuestQuestion asks which guests the leader knows of the node.
type GuestQuestion struct{}

// GuestList is their IDs.
type GuestList struct{ IDs []string }

// GuestRelease gives places back. Those that are not the node's are passed over.
type GuestRelease struct{ IDs []string }

// GuestReleased says that it is done.
type GuestReleased struct{}

// MaxGuests is how many guests a node may have, and how many it may release at once.
const MaxGuests = 4096

const (
	maxAliases = 64
	maxGuest   = 255 // of a name
	idLength   = 25
	hexID      = 64
)

// Check refuses what no node asks for.
func (r *GuestRequest) Check() error {
	bad := func(format string, args ...any) error {
		return object.Errorf(errdefs.ErrInvalidArgument, "place on a network: "+format, args...)
	}
	switch {
	case !consists(r.ID, idLength, "0123456789abcdefghijklmnopqrstuvwxyz"):
		return bad("%.40q is no ID", r.ID)
	case !consists(r.ContainerID, hexID, "0123456789abcdef"):
		return bad("%.80q is no container", r.ContainerID)
	case r.Network == "" || len(r.Network) > maxGuest:
		return bad("%.80q is no network", r.Network)
	case len(r.Aliases) > maxAliases:
		return bad("%d aliases, more than %d", len(r.Aliases), maxAliases)
	case len(r.Wanted) > 2:
		return bad("%d addresses, more than one for each family", len(r.Wanted))
	}
	for _, name := range append([]string{r.Name}, r.Aliases...) {
		if err := checkGuestName(name); err != nil {
			return bad("%w", err)
		}
	}
	for i, a := range r.Wanted {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || i > 0 && a.Is4() == r.Wanted[0].Is4() {
			return bad("%s is not an address that it can have", a)
		}
	}
	return nil
}

func consists(s string, length int, of string) bool {
	return len(s) == length && strings.Trim(s, of) == ""
}

// checkGuestName refuses what cannot be asked of a resolver.
func checkGuestName(name string) error {
	if name == "" || len(name) > maxGuest {
		return fmt.Errorf("%.80q is no name", name)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c == 0x7f {
			return fmt.Errorf("%.80q is no name", name)
		}
	}
	return nil
}

// Check refuses what no node asks for.
func (r *GuestRelease) Check() error {
	if len(r.IDs) > MaxGuests {
		return object.Errorf(errdefs.ErrInvalidArgument, "release of %d guests, more than %d", len(r.IDs), MaxGuests)
	}
	return nil
}
