package doors

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Accounts opens a root file system's files of users and groups. A file that
// is not there is empty.
type Accounts interface {
	Passwd() io.Reader
	Group() io.Reader
}

// Files of accounts come from an image, so they may be anything.
const (
	maxAccounts = 4 << 20
	maxLine     = 64 << 10
	maxID       = 1<<31 - 1
)

// LookupUser reads "user", "user:group" or nothing, each a name or a number,
// and names or numbers of further groups. A number is a number even where it
// is also somebody's name.
func LookupUser(a Accounts, text string, more []string) (specs.User, error) {
	name, group, hasGroup := strings.Cut(text, ":")
	u, login, err := lookupPasswd(a.Passwd(), name)
	if err != nil {
		return specs.User{}, err
	}
	want := slices.Clone(more)
	if group != "" {
		want = append(want, group)
	}
	found := map[string]uint32{}
	memberOf := map[uint32]bool{}
	scan(a.Group(), func(f []string) {
		if len(f) < 3 {
			return
		}
		gid, ok := number(f[2])
		if !ok {
			return
		}
		if _, seen := found[f[0]]; !seen && slices.Contains(want, f[0]) {
			found[f[0]] = gid
		}
		if len(f) > 3 && login != "" && slices.Contains(strings.Split(f[3], ","), login) {
			memberOf[gid] = true
		}
	})
	resolve := func(g string) (uint32, error) {
		if n, ok := number(g); ok {
			return n, nil
		}
		if n, ok := found[g]; ok {
			return n, nil
		}
		return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", g)
	}
	if hasGroup && group != "" {
		if u.GID, err = resolve(group); err != nil {
			return specs.User{}, err
		}
	} else {
		for gid := range memberOf {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	for _, g := range more {
		gid, err := resolve(g)
		if err != nil {
			return specs.User{}, err
		}
		u.AdditionalGids = append(u.AdditionalGids, gid)
	}
	// The group is among the others too, or a process could leave it and so
	// pass a "deny" that is meant for its members.
	u.AdditionalGids = append(u.AdditionalGids, u.GID)
	slices.Sort(u.AdditionalGids)
	u.AdditionalGids = slices.Compact(u.AdditionalGids)
	return u, nil
}

func lookupPasswd(r io.Reader, name string) (u specs.User, login string, err error) {
	uid, numeric := number(name)
	if name == "" {
		numeric = true
	}
	u.UID = uid
	done := false
	scan(r, func(f []string) {
		if done || len(f) < 4 {
			return
		}
		id, ok1 := number(f[2])
		gid, ok2 := number(f[3])
		if !ok1 || !ok2 || numeric && id != uid || !numeric && f[0] != name {
			return
		}
		u.UID, u.GID, login, done = id, gid, f[0], true
	})
	if !done && !numeric {
		return u, "", fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
	}
	return u, login, nil
}

// scan calls f with the fields of every line.
func scan(r io.Reader, f func(fields []string)) {
	if r == nil {
		return
	}
	lines := bufio.NewScanner(io.LimitReader(r, maxAccounts))
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		if line := strings.TrimSpace(lines.Text()); line != "" && line[0] != '#' {
			f(strings.Split(line, ":"))
		}
	}
}

func number(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
