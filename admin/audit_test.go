package admin_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"skep/admin"
	"skep/pki/seal"
)

// first is the file that a small audit is in.
func first(dir string) string { return filepath.Join(dir, "00000000000000000001") }

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
	whole, err := os.ReadFile(first(path))
	if err != nil {
		t.Fatal(err)
	}
	for cut := bytes.IndexByte(whole, '\n') + 1; cut < len(whole); cut++ {
		if err := os.WriteFile(first(path), whole[:cut], 0o600); err != nil {
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
	whole, err := os.ReadFile(first(path))
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
		if err := os.WriteFile(first(path), []byte(damage), 0o600); err != nil {
			t.Fatal(err)
		}
		if a, err := admin.OpenAudit(path, plainSealer{}); err == nil {
			_ = a.Close()
			t.Errorf("%s: opened", name)
		}
	}
}

func TestAudit_IsSealedAnewUnderItsWriters(t *testing.T) {
	first, second := seal.NewSecret(), seal.NewSecret()
	ring, err := seal.NewKeyring(first)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "audit")
	audit, err := admin.OpenAuditSegments(dir, ring, 4<<10)
	if err != nil {
		t.Fatal(err)
	}
	const each = 100
	write := func() {
		for range each {
			if err := audit.Append(admin.Record{Object: "o"}); err != nil {
				t.Error(err)
			}
		}
	}
	write()
	ring.Rotate(second)
	var writer sync.WaitGroup
	writer.Go(write)
	for range 3 { // again is as good as once
		if err := audit.Reseal(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	ring.Retire()
	writer.Wait()
	write()
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	only, err := seal.NewKeyring(second)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	if err := admin.ReadAudit(dir, only, func(admin.Record) error { count++; return nil }); err != nil || count != 3*each {
		t.Errorf("read %d records, %v", count, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.part")); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if audit, err = admin.OpenAudit(dir, only); err != nil {
		t.Fatal(err)
	}
	if err := audit.Reseal(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := audit.Close(); err != nil {
		t.Fatal(err)
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

func TestAudit_BeginsANewSegmentAndCanLoseTheOldest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	appendOne := func() {
		t.Helper()
		a, err := admin.OpenAuditSegments(dir, plainSealer{}, 1000)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.Append(admin.Record{Object: "o"}), a.Append(admin.Record{Object: "o"}), a.Close()); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		appendOne()
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < 3 {
		t.Fatalf("got %v, %v", entries, err)
	}
	if got := records(t, dir); len(got) != 10 || got[9].Sequence != 10 {
		t.Errorf("got %d records", len(got))
	}
	// The machine ended when the next segment had been begun.
	if err := os.WriteFile(filepath.Join(dir, "00000000000000000011"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	appendOne()
	if err := os.Remove(filepath.Join(dir, entries[0].Name())); err != nil {
		t.Fatal(err)
	}
	if got := records(t, dir); got[len(got)-1].Sequence != 12 {
		t.Errorf("got %+v", got)
	}
	if err := os.Remove(filepath.Join(dir, entries[2].Name())); err != nil {
		t.Fatal(err)
	}
	if err := admin.ReadAudit(dir, plainSealer{}, func(admin.Record) error { return nil }); err == nil {
		t.Error("read an audit with a hole")
	}
}

func TestAudit_LeavesNothingInPlain(t *testing.T) {
	ring, err := seal.NewKeyring(seal.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	a, err := admin.OpenAudit(dir, ring)
	if err != nil {
		t.Fatal(err)
	}
	if err = errors.Join(a.Append(admin.Record{Object: "canary"}), a.Close()); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(first(dir))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(b)))
	if err != nil || bytes.Contains(b, []byte("canary")) || bytes.Contains(plain, []byte("canary")) {
		t.Errorf("got %q, %v", plain, err)
	}
	if a, err = admin.OpenAudit(dir, ring); err != nil {
		t.Fatal(err)
	}
	_ = a.Close()
}
