package store_test

import (
	"errors"
	"testing"
	"time"

	"skep/store"
	"skep/store/object"
)

// FuzzCheck: what is let into the log can be applied by all.
func FuzzCheck(f *testing.F) {
	tx := store.Begin(store.New().Snapshot())
	tx.Create(&object.Task{ID: "1"})
	tx.Create(secret("2", "two"))
	tx.Delete(secret("3", "three"))
	tx.There(secret("4", "four"))
	tx.Unused(secret("3", "three"))
	good, err := tx.Encode(time.Unix(1, 0))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, command []byte) {
		checked := store.Check(command)
		err := store.New().Apply(1, command)
		if _, fatal := errors.AsType[*store.FatalError](err); fatal && checked == nil {
			t.Errorf("was let in and cannot be applied: %v", err)
		}
	})
}
