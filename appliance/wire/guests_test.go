package wire_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"skep/appliance/wire"
	"skep/store/object"
)

func guestRequest() *wire.GuestRequest {
	return &wire.GuestRequest{
		ID: object.NewID(), ContainerID: strings.Repeat("0a", 32), Name: "box", Network: "front", Aliases: []string{"www"},
		Wanted: []netip.Addr{netip.MustParseAddr("10.0.1.5"), netip.MustParseAddr("fd00::5")},
	}
}

func TestGuestRequest_Check(t *testing.T) {
	if err := guestRequest().Check(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	for name, change := range map[string]func(*wire.GuestRequest){
		"no ID":                func(r *wire.GuestRequest) { r.ID = "" },
		"short ID":             func(r *wire.GuestRequest) { r.ID = r.ID[1:] },
		"ID with a slash":      func(r *wire.GuestRequest) { r.ID = "/" + r.ID[1:] },
		"no container":         func(r *wire.GuestRequest) { r.ContainerID = "" },
		"no network":           func(r *wire.GuestRequest) { r.Network = "" },
		"long network":         func(r *wire.GuestRequest) { r.Network = strings.Repeat("x", 256) },
		"no name":              func(r *wire.GuestRequest) { r.Name = "" },
		"name of two lines":    func(r *wire.GuestRequest) { r.Name = "a\nb" },
		"empty alias":          func(r *wire.GuestRequest) { r.Aliases = []string{""} },
		"long alias":           func(r *wire.GuestRequest) { r.Aliases = []string{strings.Repeat("x", 256)} },
		"many aliases":         func(r *wire.GuestRequest) { r.Aliases = make([]string, 65) },
		"no address":           func(r *wire.GuestRequest) { r.Wanted = []netip.Addr{{}} },
		"mapped address":       func(r *wire.GuestRequest) { r.Wanted = []netip.Addr{netip.MustParseAddr("::ffff:10.0.1.5")} },
		"address with a zone":  func(r *wire.GuestRequest) { r.Wanted = []netip.Addr{netip.MustParseAddr("fe80::1%eth0")} },
		"two of one family":    func(r *wire.GuestRequest) { r.Wanted[1] = netip.MustParseAddr("10.0.1.6") },
		"more than one of two": func(r *wire.GuestRequest) { r.Wanted = append(r.Wanted, r.Wanted[0]) },
	} {
		r := guestRequest()
		change(r)
		if err := r.Check(); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	many := &wire.GuestRelease{IDs: make([]string, wire.MaxGuests+1)}
	if err := many.Check(); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a large release: %v", err)
	}
}

// FuzzGuestRequest: what passes the check fits into the store and can be asked
// of a resolver.
func FuzzGuestRequest(f *testing.F) {
	b, err := object.Encode(guestRequest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte{0xa0})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := new(wire.GuestRequest)
		if object.Decode(b, r) != nil || r.Check() != nil {
			return
		}
		if len(r.ID) != 25 || len(r.ContainerID) != 64 || len(r.Aliases) > 64 || len(r.Wanted) > 2 {
			t.Errorf("took %+v", r)
		}
		for _, name := range append([]string{r.Name}, r.Aliases...) {
			if name == "" || len(name) > 255 || strings.ContainsAny(name, " \n\x00") {
				t.Errorf("took the name %q", name)
			}
		}
		for _, a := range r.Wanted {
			if !a.IsValid() || a.Zone() != "" {
				t.Errorf("took the address %v", a)
			}
		}
	})
}
