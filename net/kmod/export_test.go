// SPDX-License-Identifier: Apache-2.0

package kmod

// Find lists the files that loading a module loads.
func Find(dir, name string) ([]string, error) { return find(dir, name) }
