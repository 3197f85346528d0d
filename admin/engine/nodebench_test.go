package engine_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"skep/store/object"
)

// discard is a reply that is thrown away.
type discard struct {
	header http.Header
	n      int
}

func (d *discard) Header() http.Header { return d.header }
func (d *discard) WriteHeader(int)     {}
func (d *discard) Flush()              {}
func (d *discard) Write(p []byte) (int, error) {
	d.n += len(p)
	return len(p), nil
}

// BenchmarkLogs is the cost of a line on its way from the log to the client.
func BenchmarkLogs(b *testing.B) {
	const lines = 10_000
	n := newNode(b)
	p := n.start(b, "web", false, "exit")
	<-p.ended
	for range lines {
		p.logs = append(p.logs, object.LogLine{Time: time.Now(), Text: append(bytes.Repeat([]byte("x"), 99), '\n')})
	}
	r := httptest.NewRequestWithContext(b.Context(), http.MethodGet, "/containers/web/logs?stdout=1&timestamps=1", nil)
	b.ReportAllocs()
	for b.Loop() {
		w := &discard{header: http.Header{}}
		n.handler.ServeHTTP(w, r)
		if w.n != lines*(8+31+100) {
			b.Fatalf("got %d bytes", w.n)
		}
	}
	b.ReportMetric(lines*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}
