package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"skep/appliance/wire"
	"skep/store/object"
)

const (
	// domain is what the task file is sealed for.
	domain = "agent/tasks"
	// settle is how long changes of status gather before the file is written.
	settle = time.Second
)

// content is the task file: tasks with the node's own status, and what they
// refer to.
type content struct{ Items []wire.Item }

// load reads the file.
func (a *Agent) load() (items map[item]wire.Item, found bool, err error) {
	a.saving.Lock() // the key that opens it is kept until Reseal is over
	defer a.saving.Unlock()
	sealed, err := os.ReadFile(a.cfg.File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read task file: %w", err)
	}
	plain, err := a.cfg.Sealer.Open(domain, sealed)
	if err != nil {
		return nil, false, fmt.Errorf("open task file: %w", err)
	}
	var c content
	if err := object.Decode(plain, &c); err != nil {
		return nil, false, fmt.Errorf("decode task file: %w", err)
	}
	items = map[item]wire.Item{}
	for _, i := range c.Items {
		if _, err := i.Unpack(); err != nil {
			return nil, false, fmt.Errorf("decode task file: %w", err)
		}
		items[item{i.Kind, i.Key}] = i
	}
	return items, true, nil
}

// save writes the file: what is assigned and how far it is now.
func (a *Agent) save() error {
	a.saving.Lock()
	defer a.saving.Unlock()
	c, err := a.content()
	if err != nil {
		return err
	}
	plain, err := object.Encode(c)
	if err != nil {
		return fmt.Errorf("encode task file: %w", err)
	}
	if err := replace(a.cfg.File, a.cfg.Sealer.Seal(domain, plain)); err != nil {
		return fmt.Errorf("write task file: %w", err)
	}
	return nil
}

func (a *Agent) content() (content, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := content{Items: make([]wire.Item, 0, len(a.items))}
	for k, i := range a.items {
		w := a.workers[k.key]
		if k.kind != object.KindTask || w == nil {
			c.Items = append(c.Items, i)
			continue
		}
		now, err := wire.Pack(w.task())
		if err != nil {
			return c, err
		}
		c.Items = append(c.Items, now)
	}
	slices.SortFunc(c.Items, func(a, b wire.Item) int { return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key)) })
	return c, nil
}

// keepSaved writes the file some time after a status has changed: a status that
// is lost is found out again, for all of a controller's verbs are idempotent.
func (a *Agent) keepSaved(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), a.save())
		case <-a.dirty:
		}
		t := time.NewTimer(settle)
		select {
		case <-ctx.Done():
			t.Stop()
		case <-t.C:
		}
		if err := a.save(); err != nil && ctx.Err() == nil {
			// A full disk does not end what runs.
			a.cfg.Logger.WarnContext(ctx, "tasks not stored", "err", err)
			signal(a.dirty)
		}
	}
}

// replace writes a file so that after a crash it is the old or the new one.
func replace(name string, data []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
