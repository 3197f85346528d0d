package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"
)

const module = "skep"

// may lists, for each part of the tree, the parts that its packages may import.
// The longest matching key wins and a part may always import itself, so a key
// is also a wall: a package without one shares its parent's.
func may() map[string][]string {
	return map[string][]string{
		"":             {"appliance", "admin/cli", "exec/doors"},
		"pki":          {},
		"store/object": {},
		"store":        {"pki/seal"},
		"net":          {"store/object"},
		"exec":         {"store/object"},
		// Every container's start pays for what the doors import.
		"exec/doors":          {"exec/shim"},
		"appliance/config":    {},
		"appliance/wire":      {"store/object", "pki"},
		"appliance/boot":      {"appliance/config"},
		"appliance/upgrade":   {"appliance/config"},
		"appliance/agent":     {"appliance/wire", "store/object", "pki/identity"},
		"appliance/manager":   {"appliance/wire", "store", "pki", "net/ipam"},
		"appliance/dataplane": {"appliance/wire", "net", "store/object"},
		"appliance":           {"store", "pki", "net", "exec", "admin"},
		"admin":               {"store", "pki"},
		// The command line links docker/cli: only main may pay for it.
		"admin/cli": {"appliance/config", "admin/client", "store/object"},
		"packaging": {"appliance/boot", "appliance/config"},
	}
}

// top is everything that may lie at the top of the tree, beside tests and dot files.
func top() []string {
	return []string{
		"main.go", "appliance", "store", "exec", "net", "pki", "admin", "packaging",
		"go.mod", "go.sum", "README.md", "LICENSE", "Makefile", "testdata", "bin",
	}
}

type listed struct {
	ImportPath, Name, Doc string
	Imports               []string
	GoFiles, CgoFiles     []string
}

func goList(t *testing.T, args ...string) (ps []listed) {
	t.Helper()
	args = append([]string{"list", "-json=ImportPath,Name,Doc,Imports,GoFiles,CgoFiles"}, args...)
	out, err := exec.CommandContext(t.Context(), "go", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); d.More(); {
		var p listed
		if err := d.Decode(&p); err != nil {
			t.Fatal(err)
		}
		ps = append(ps, p)
	}
	return ps
}

func within(p, part string) bool { return p == part || strings.HasPrefix(p, part+"/") }

func partOf(table map[string][]string, p string) string {
	for ; p != "" && p != "."; p = path.Dir(p) {
		if _, ok := table[p]; ok {
			return p
		}
	}
	return ""
}

func TestLayout_ImportsFollowTheTable(t *testing.T) {
	table := may()
	for _, p := range goList(t, "./...") {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		from := partOf(table, rel)
		for _, imp := range p.Imports {
			to, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			own := from != "" && within(to, from)
			if own && partOf(table, to) != "admin/cli" {
				continue
			}
			if own && from == "admin/cli" {
				continue
			}
			allowed := func(part string) bool {
				return within(to, part) && (part == "admin/cli" || !within(to, "admin/cli"))
			}
			if !slices.ContainsFunc(table[from], allowed) {
				t.Errorf("%s may not import %s", p.ImportPath, to)
			}
		}
	}
}

func TestLayout_PackagesSayWhatTheyAreAndHideNoStandardName(t *testing.T) {
	std := map[string]bool{}
	for _, p := range goList(t, "std") {
		if !slices.Contains(strings.Split(p.ImportPath, "/"), "internal") && !within(p.ImportPath, "vendor") {
			std[p.Name] = true
		}
	}
	for _, p := range goList(t, "./...") {
		rel := strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
		if len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue // tests only
		}
		if p.Doc == "" {
			t.Errorf("%s: no package comment", p.ImportPath)
		}
		// net and exec are folders: a package there would hide the standard one.
		if rel == "net" || rel == "exec" || std[p.Name] {
			t.Errorf("%s: package %s hides a standard package", p.ImportPath, p.Name)
		}
	}
}

func TestLayout_TopLevelIsFixed(t *testing.T) {
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "_test.go") || slices.Contains(top(), name) {
			continue
		}
		t.Errorf("%s does not belong at the top of the tree", name)
	}
}
