package logs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"skep/exec/logs"
	"skep/store/object"
)

func write(tb testing.TB, dir, name, text string) {
	tb.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		tb.Fatal(err)
	}
}

func add(tb testing.TB, dir, text string) {
	tb.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "log"), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		tb.Fatal(err)
	}
}

func rec(sec int, stream, flag, text string) string {
	return fmt.Sprintf("2026-11-20T10:00:%02d.000000000Z %s %s %s\n", sec, stream, flag, text)
}

func at(sec int) time.Time { return time.Date(2026, 11, 20, 10, 0, sec, 0, time.UTC) }

func both(q object.LogQuery) object.LogQuery {
	q.Stdout, q.Stderr = true, true
	return q
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "log.2", rec(1, "stdout", "F", "one")+rec(2, "stderr", "F", "two"))
	write(t, dir, "log.1", rec(3, "stdout", "P", "thr")+rec(3, "stderr", "F", "between")+rec(3, "stdout", "F", "ee")+"garbage\n\x00\x00\n"+rec(4, "stdout", "F", ""))
	write(t, dir, "log", rec(5, "stderr", "F", "five")+rec(6, "stdout", "F", "six ")+rec(7, "stdout", "P", "last"))
	tests := []struct {
		name string
		q    object.LogQuery
		want string
	}{
		{"all", both(object.LogQuery{Tail: -1}), "one\ntwo\nthrbetween\nee\n\nfive\nsix \nlast"},
		{"stdout", object.LogQuery{Stdout: true, Tail: -1}, "one\nthree\n\nsix \nlast"},
		{"stderr", object.LogQuery{Stderr: true, Tail: -1}, "two\nbetween\nfive\n"},
		{"since", both(object.LogQuery{Tail: -1, Since: at(5)}), "five\nsix \nlast"},
		{"until", both(object.LogQuery{Tail: -1, Until: at(2)}), "one\ntwo\n"},
		{"no lines", both(object.LogQuery{}), ""},
		{"last one", both(object.LogQuery{Tail: 1}), "last"},
		{"last two", both(object.LogQuery{Tail: 2}), "six \nlast"},
		{"tail over files", both(object.LogQuery{Tail: 5}), "ee\n\nfive\nsix \nlast"},
		{"tail of stdout", object.LogQuery{Stdout: true, Tail: 4}, "three\n\nsix \nlast"},
		{"tail of stderr", object.LogQuery{Stderr: true, Tail: 2}, "between\nfive\n"},
		{"tail beyond the beginning", both(object.LogQuery{Tail: 99}), "one\ntwo\nthrbetween\nee\n\nfive\nsix \nlast"},
		{"tail and since", both(object.LogQuery{Tail: 3, Since: at(6)}), "six \nlast"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got strings.Builder
			for l, err := range logs.Read(t.Context(), dir, tt.q, nil) {
				if err != nil {
					t.Fatal(err)
				}
				got.Write(l.Text)
			}
			if got.String() != tt.want {
				t.Errorf("got %q, want %q", got.String(), tt.want)
			}
		})
	}
}

func TestRead_TailOfAnyLengthInAnyBlock(t *testing.T) {
	dir := t.TempDir()
	var all []string
	var text strings.Builder
	for i := range 3000 {
		line := fmt.Sprintf("%d %s", i, strings.Repeat("x", i%200))
		all = append(all, line+"\n")
		text.WriteString(rec(i%60, "stdout", "F", line))
	}
	write(t, dir, "log", text.String())
	for _, n := range []int{1, 2, 500, 1234, 2999, 3000, 3001} {
		var got strings.Builder
		for l, err := range logs.Read(t.Context(), dir, both(object.LogQuery{Tail: n}), nil) {
			if err != nil {
				t.Fatal(err)
			}
			got.Write(l.Text)
		}
		if want := strings.Join(all[max(0, len(all)-n):], ""); got.String() != want {
			t.Errorf("tail %d has %d bytes, want %d", n, got.Len(), len(want))
		}
	}
}

func TestRead_FollowsThroughRotation(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "log", rec(1, "stdout", "F", "old"))
	ended := make(chan struct{})
	lines := make(chan string, 100) // more than the test writes
	go func() {
		defer close(lines)
		for l, err := range logs.Read(context.Background(), dir, both(object.LogQuery{Follow: true}), ended) {
			if err != nil {
				t.Error(err)
			}
			lines <- string(l.Text)
		}
	}()
	expect := func(want string) {
		t.Helper()
		select {
		case got := <-lines:
			if got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("waited in vain for %q", want)
		}
	}
	time.Sleep(50 * time.Millisecond) // until it watches: "old" is not asked for
	add(t, dir, rec(2, "stdout", "F", "a"))
	expect("a\n")
	whole := rec(3, "stderr", "F", "b")
	add(t, dir, whole[:20])
	time.Sleep(20 * time.Millisecond)
	add(t, dir, whole[20:])
	expect("b\n")
	for i := range 5 {
		add(t, dir, rec(4, "stdout", "F", fmt.Sprint("last of ", i)))
		for n := 3; n >= 0; n-- {
			from := "log"
			if n > 0 {
				from = fmt.Sprint("log.", n)
			}
			_ = os.Rename(filepath.Join(dir, from), filepath.Join(dir, fmt.Sprint("log.", n+1))) // some are not there yet
		}
		add(t, dir, rec(5, "stdout", "F", fmt.Sprint("first of ", i+1)))
		if i%2 == 0 { // sometimes two turns at once
			continue
		}
		for _, k := range []int{i - 1, i} {
			expect(fmt.Sprintf("last of %d\n", k))
			expect(fmt.Sprintf("first of %d\n", k+1))
		}
	}
	expect("last of 4\n")
	expect("first of 5\n")
	add(t, dir, rec(6, "stdout", "F", "end"))
	close(ended)
	expect("end\n")
	if l, ok := <-lines; ok {
		t.Errorf("after the end came %q", l)
	}
}

func TestRead_FollowEndsWithItsReader(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	for l, err := range logs.Read(ctx, t.TempDir(), both(object.LogQuery{Follow: true, Tail: -1}), nil) {
		t.Errorf("got %v, %v from nothing", l, err)
	}
}

// A record that parses says what it was made from.
func FuzzParse(f *testing.F) {
	f.Add([]byte(strings.TrimSuffix(rec(1, "stdout", "F", "hello world"), "\n")))
	f.Add([]byte("2026-11-20T10:00:01Z stderr P "))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, ok := logs.Parse(b)
		if !ok {
			return
		}
		// A whole line has the newline that b lacks; a part is as it stands.
		if text := string(l.Text); !strings.HasSuffix(string(b), text) && !strings.HasSuffix(string(b)+"\n", text) {
			t.Errorf("%q became %q", b, l.Text)
		}
	})
}

// Whatever is in the file, reading ends, and a tail is an end of the whole.
func FuzzRead(f *testing.F) {
	f.Add([]byte(rec(1, "stdout", "F", "a")+rec(2, "stderr", "P", "b")+"x\n\n"), 1)
	f.Add([]byte("\x00\n"+rec(1, "stdout", "P", "a")+rec(2, "stdout", "F", "")), 2)
	f.Fuzz(func(t *testing.T, b []byte, tail int) {
		dir := t.TempDir()
		write(t, dir, "log", string(b))
		read := func(n int) (text string) {
			for l, err := range logs.Read(t.Context(), dir, object.LogQuery{Stdout: true, Tail: n}, nil) {
				if err != nil {
					t.Fatal(err)
				}
				text += string(l.Text)
			}
			return text
		}
		if all, some := read(-1), read(tail&0xff); !strings.HasSuffix(all, some) {
			t.Errorf("tail %q is not the end of %q", some, all)
		}
	})
}

func BenchmarkRead(b *testing.B) {
	dir := b.TempDir()
	line := rec(1, "stdout", "F", strings.Repeat("x", 80))
	write(b, dir, "log", strings.Repeat(line, 10_000))
	for _, tail := range []int{-1, 100} {
		b.Run(fmt.Sprint("tail=", tail), func(b *testing.B) {
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				for _, err := range logs.Read(b.Context(), dir, both(object.LogQuery{Tail: tail}), nil) {
					if err != nil {
						b.Fatal(err)
					}
					n++
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
