// SPDX-License-Identifier: Apache-2.0

package ingress

import (
	"errors"

	"skep/net/nft"
)

// table is a table of ours in the kernel.
type table struct {
	// now is what the kernel has, if that is known.
	now   nft.Table
	known bool
	want  nft.Table
}

// settled reports whether there is nothing to do.
func (t *table) settled() bool { return t.known && t.now.String() == t.want.String() }

// same reports whether the kernel has what is wanted.
func (t *table) same(c *nft.Conn) (bool, error) {
	got, ok, err := c.Read(t.want.Family, t.want.Name)
	return err == nil && ok && got.String() == t.want.String(), err
}

// read finds out what the kernel has. It reports whether that is what is wanted.
func (t *table) read(c *nft.Conn) (bool, error) {
	same, err := t.same(c)
	if err != nil {
		return false, err
	}
	if t.known = same; t.known {
		t.now = t.want
	}
	return t.known, nil
}

// set makes the kernel have what is wanted.
func (t *table) set(c *nft.Conn) error {
	if t.settled() {
		return nil
	}
	if !t.known {
		// An earlier process may have left it as it should be.
		if same, err := t.read(c); err != nil || same {
			return err
		}
		return t.replace(c)
	}
	err := c.Apply(t.now, t.want)
	if err == nil {
		t.now = t.want
		return nil
	}
	// Somebody else may have changed it: then it is made anew.
	if again := t.replace(c); again != nil {
		return errors.Join(err, again)
	}
	return nil
}

func (t *table) replace(c *nft.Conn) error {
	t.known = false
	if err := c.Replace(t.want); err != nil {
		return err
	}
	t.now, t.known = t.want, true
	return nil
}

// mend makes the kernel have what is wanted, if it has not. It reports whether
// it had not.
func (t *table) mend(c *nft.Conn) (bool, error) {
	same, err := t.read(c)
	if err != nil || same {
		return false, err
	}
	return true, t.replace(c)
}
