// SPDX-License-Identifier: Apache-2.0

package kmod

// Find lists the files that loading a module loads.
func Find(dir, name string) ([]string, error) {
	l, err := read(dir)
	if err != nil {
		return nil, err
	}
	return l.find(name)
}
