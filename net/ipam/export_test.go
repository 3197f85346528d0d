// SPDX-License-Identifier: Apache-2.0

package ipam

// Len is how many addresses are held.
func (b *Book) Len() int { return len(b.held) }
