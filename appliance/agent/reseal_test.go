package agent_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"skep/appliance/agent"
	"skep/pki/seal"
)

func TestAgent_SealsItsFileAnewWithoutHavingReadIt(t *testing.T) {
	ring, err := seal.NewKeyring(seal.NewSecret())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, networks := filepath.Join(dir, "tasks"), filepath.Join(dir, "networks")
	a := agent.New(agent.Config{NodeID: "n1", File: file, NetworksFile: networks, Sealer: ring, Executor: &runtime{}, Logger: slog.New(slog.DiscardHandler)})
	if err := a.Reseal(t.Context()); err != nil {
		t.Fatalf("without a file: %v", err)
	}
	const plain = "what is in it does not matter"
	for name, content := range map[string][]byte{
		file: ring.Seal("agent/tasks", []byte(plain)), file + ".123": []byte("half a file"),
		networks: ring.Seal("agent/networks", []byte(plain)), networks + ".123": []byte("half a file"),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ring.Rotate(seal.NewSecret())
	if err := a.Reseal(t.Context()); err != nil {
		t.Fatal(err)
	}
	ring.Retire()
	for _, name := range []string{"tasks", "networks"} {
		sealed, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := ring.Open("agent/"+name, sealed); err != nil || string(got) != plain {
			t.Errorf("%s: got %q, %v", name, got, err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 {
		t.Errorf("left %v", left)
	}
}
