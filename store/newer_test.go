package store_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"skep/store"
	"skep/store/object"
)

// TestStore_RefusesWhatANewerVersionWrote: to pass over it would be to disagree
// with the others in silence.
func TestStore_RefusesWhatANewerVersionWrote(t *testing.T) {
	one, two := []byte{0x61, 'v', 1}, []byte{0x61, 'v', 2} // "v" and a number in CBOR
	saved := bytes.Replace(save(t, store.New().Snapshot()), two, []byte{0x61, 'v', 3}, 1)
	if err := store.New().Restore(bytes.NewReader(saved)); err == nil || !strings.Contains(err.Error(), "a newer one") {
		t.Errorf("restored: %v", err)
	}
	tx := store.Begin(store.New().Snapshot())
	tx.Create(&object.Task{ID: "1"})
	good, err := tx.Encode(object.Task{}.CreatedAt)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Check(good); err != nil {
		t.Errorf("refused what is good: %v", err)
	}
	for name, command := range map[string][]byte{
		"version": bytes.Replace(good, one, two, 1),
		"type":    bytes.Replace(good, []byte("change"), []byte("chance"), 1),
		"op":      bytes.Replace(good, []byte("create"), []byte("crease"), 1),
		"kind":    bytes.Replace(good, []byte("dtask"), []byte("dtusk"), 1),
		"nothing": nil,
	} {
		if bytes.Equal(command, good) {
			t.Fatalf("%s: nothing was changed", name)
		}
		for what, err := range map[string]error{"check": store.Check(command), "apply": store.New().Apply(1, command)} {
			if _, ok := errors.AsType[*store.FatalError](err); !ok {
				t.Errorf("%s of another %s: %v", what, name, err)
			}
		}
	}
}
