// SPDX-License-Identifier: Apache-2.0

package attach_test

import (
	"fmt"
	"testing"

	"skep/store/object"
)

func BenchmarkConnectDisconnect(b *testing.B) {
	for _, others := range []int{0, 100} {
		for _, ports := range [][]object.Port{nil, {port("tcp", 8080, 80)}} {
			b.Run(fmt.Sprintf("others=%d/ports=%d", others, len(ports)), func(b *testing.B) {
				n := newNode(b, "cccccc")
				for i := range others {
					n.connect(b, fmt.Sprint("other", i), port("tcp", uint16(9090+i), 80))
				}
				for b.Loop() {
					n.connect(b, "c", ports...)
					if err := n.Disconnect(b.Context(), "c"); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkRetainNone(b *testing.B) {
	const many = 50
	n := newNode(b, "cccccc")
	for b.Loop() {
		b.StopTimer()
		for i := range many {
			n.connect(b, fmt.Sprint("c", i), port("tcp", uint16(9090+i), 80))
		}
		b.StartTimer()
		if err := n.Retain(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(many*float64(b.N)/b.Elapsed().Seconds(), "endpoints/s")
}

func BenchmarkConnect(b *testing.B) {
	n := newNode(b, "cccccc")
	for b.Loop() {
		n.connect(b, "c")
		b.StopTimer()
		if err := n.Disconnect(b.Context(), "c"); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}
