package admin_test

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"skep/admin"
)

func TestAudit_GoesOnAfterARestartAndDropsACutLine(t *testing.T) {
	audit, path := openAudit(t)
	for _, o := range []string{"a", "b"} {
		if err := audit.Append(admin.Record{Object: o}); err != nil {
			t.Fatal(err)
		}
	}
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first := bytes.IndexByte(whole, '\n') + 1
	for cut := first; cut < len(whole); cut++ {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		again, err := admin.OpenAudit(path, plainSealer{})
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		if err := again.Append(admin.Record{Object: "c"}); err != nil {
			t.Fatal(err)
		}
		_ = again.Close()
		got := records(t, path)
		if len(got) != 2 || got[0].Object != "a" || got[1].Object != "c" || got[1].Sequence != 2 {
			t.Fatalf("cut at %d: got %+v", cut, got)
		}
	}
}

func TestAudit_NoticesWhatWasDoneToIt(t *testing.T) {
	audit, path := openAudit(t)
	for _, o := range []string{"a", "b", "c"} {
		if err := audit.Append(admin.Record{Object: o}); err != nil {
			t.Fatal(err)
		}
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(whole), "\n")
	for name, damage := range map[string]string{
		"dropped":   lines[0] + lines[2],
		"beheaded":  lines[1] + lines[2],
		"swapped":   lines[0] + lines[2] + lines[1],
		"repeated":  lines[0] + lines[0] + lines[1],
		"scribbled": lines[0] + "x" + lines[1][1:] + lines[2],
		"not lines": "\x00\x01\n",
		"endless":   strings.Repeat("x", 1<<20),
	} {
		if err := os.WriteFile(path, []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := admin.OpenAudit(path, plainSealer{}); err == nil {
			_ = a.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

func BenchmarkAudit_Append(b *testing.B) {
	audit, err := admin.OpenAudit(b.TempDir()+"/audit", plainSealer{})
	if err != nil {
		b.Fatal(err)
	}
	rec := admin.Record{Principal: "uid 0", Transport: "unix", Pattern: "POST /services/create", Object: "web"}
	b.ReportAllocs()
	for b.Loop() {
		if err := audit.Append(rec); err != nil {
			b.Fatal(err)
		}
	}
}
