package nodetest_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"skep/appliance/nodetest"
)

func TestParseWrk(t *testing.T) {
	const head = `Running 60m test @ http://10.77.0.11:8080/
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.28ms  653.15us  11.56ms   91.02%
    Req/Sec     3.24k   219.66     3.67k    68.00%
  Latency Distribution
     50%    1.15ms
     75%    1.40ms
     90%    1.77ms
     99%  980.00us
  16131 requests in 5.00s, 2.51MB read
`
	good := nodetest.WrkReport{Requests: 16131, Rate: 3225.11, Median: 1150 * time.Microsecond, P99: 980 * time.Microsecond}
	bad, watched := good, good
	bad.Connect, bad.Read, bad.Write, bad.Status = 1, 2, 3, 5
	watched.Connections = []nodetest.Connection{{7, time.Second, 500 * time.Millisecond}, {37, 2 * time.Second, 80 * time.Millisecond}}
	const rate = "Requests/sec:   3225.11\nTransfer/sec:    514.10KB\n"
	for text, want := range map[string]nodetest.WrkReport{
		head + rate: good,
		head + "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 5\n" + rate:               bad,
		head + rate + "connection: 7 answers, gap 1.000s, silent 0.500s\nconnection: 37 answers, gap 2.000s, silent 0.080s\n": watched,
	} {
		got, err := nodetest.ParseWrk(text)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Error(err, diff)
		}
	}
	if bad.Failures() != 11 || good.Failures() != 0 {
		t.Errorf("%d and %d failures", bad.Failures(), good.Failures())
	}
	if watched.Gap() != 2*time.Second || watched.Silent(100*time.Millisecond) != 1 {
		t.Errorf("gap %v, %d silent", watched.Gap(), watched.Silent(100*time.Millisecond))
	}
	if _, err := nodetest.ParseWrk("unable to connect to 10.77.0.11:8080 Connection refused"); err == nil {
		t.Error("no report is none")
	}
}
