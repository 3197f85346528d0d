package engine_test

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The table is kept as text so that a change of who may do what shows in review.
func TestRoutes_AreTheTableInReview(t *testing.T) {
	var lines []string
	for _, r := range newNode(t).routes {
		marks := "-"
		if r.Mutates {
			marks = "audited"
		}
		method, path, _ := strings.Cut(r.Pattern, " ")
		line := fmt.Sprintf("%-8s %-8s %-6s %s", r.Role, marks, method, path)
		if r.Stream {
			line += "  (stream)"
		}
		lines = append(lines, line)
	}
	slices.Sort(lines)
	slices.SortStableFunc(lines, func(a, b string) int { return strings.Compare(a[25:], b[25:]) })
	got := strings.Join(lines, "\n") + "\n"
	const golden = "testdata/routes.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Error("authorisation table (-want +got; -update rewrites it)", diff)
	}
}
