package doors_test

import (
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"

	"skep/exec/doors"
)

type accounts struct{ passwd, group string }

func (a accounts) Passwd() io.Reader { return strings.NewReader(a.passwd) }
func (a accounts) Group() io.Reader  { return strings.NewReader(a.group) }

func TestLookupUser(t *testing.T) {
	a := accounts{
		"root:x:0:0::/root:/bin/sh\n# note\nalice:x:1000:1001::/h:\n7:x:8:8::/:\nbroken:x\nmany:x:5:6::/:\nmany:x:9:9::/:\nhuge:x:99999999999:1::/:\n",
		"root:x:0:\nstaff:x:50:bob,alice\nwheel:x:10:alice\nbad:x:y:alice\n",
	}
	tests := []struct {
		text string
		more []string
		want specs.User
		err  string
	}{
		{"", nil, specs.User{AdditionalGids: []uint32{0}}, ""},
		{"alice", nil, specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 50, 1001}}, ""},
		{"1000", nil, specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{10, 50, 1001}}, ""},
		{"alice:wheel", nil, specs.User{UID: 1000, GID: 10, AdditionalGids: []uint32{10}}, ""},
		{"7", nil, specs.User{UID: 7, AdditionalGids: []uint32{0}}, ""},
		{"4242:4243", nil, specs.User{UID: 4242, GID: 4243, AdditionalGids: []uint32{4243}}, ""},
		{"many", nil, specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6}}, ""},
		{"root", []string{"staff", "77", "77"}, specs.User{AdditionalGids: []uint32{0, 50, 77}}, ""},
		{"bob", nil, specs.User{}, "unable to find user bob: no matching entries in passwd file"},
		{"huge", nil, specs.User{}, "unable to find user huge: no matching entries in passwd file"},
		{"root:nope", nil, specs.User{}, "unable to find group nope: no matching entries in group file"},
		{"4294967295", nil, specs.User{}, "unable to find user 4294967295: no matching entries in passwd file"},
	}
	for _, tt := range tests {
		t.Run(tt.text, func(t *testing.T) {
			got, err := doors.LookupUser(a, tt.text, tt.more)
			if text := errText(err); text != tt.err {
				t.Fatalf("error %q, want %q", text, tt.err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" && err == nil {
				t.Error(diff)
			}
		})
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// Whatever an image says of its users, a number stays what it is, and nobody
// gets an ID that means "no ID".
func FuzzLookupUser(f *testing.F) {
	f.Add("root:x:0:0::/:\n", "root:x:0:\n", "root:root")
	f.Add("7:x:8:8::/:", "a:x:1:7", "7")
	f.Fuzz(func(t *testing.T, passwd, group, text string) {
		u, err := doors.LookupUser(accounts{passwd, group}, text, nil)
		if err != nil {
			return
		}
		if u.UID > 1<<31-1 || u.GID > 1<<31-1 || !slices.Contains(u.AdditionalGids, u.GID) {
			t.Errorf("%q is %+v", text, u)
		}
		if text == "5" && u.UID != 5 {
			t.Errorf("5 is %+v", u)
		}
	})
}
