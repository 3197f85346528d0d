// SPDX-License-Identifier: Apache-2.0

package esp

import "strings"

// Text is what the state makes of the kernel.
func (s State) Text() (string, error) {
	p, err := s.plan(reqidBase | 0xabcdef)
	return p.String(), err
}

// Steps are what leads from one state to another.
func Steps(from, to State) string {
	have, err := from.plan(reqidBase)
	if err != nil {
		panic(err)
	}
	want, err := to.plan(reqidBase)
	if err != nil {
		panic(err)
	}
	var b strings.Builder
	for _, s := range diff(have, want) {
		b.WriteString(s.String() + "\n")
	}
	return b.String()
}
