package containers

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"skep/exec/runspec"
	"skep/store/object"
)

// record is what a container was made to be. It changes by renaming only.
type record struct {
	ID, Name string
	Created  time.Time
	// Config is merged with the image's.
	Config  container.Config
	Host    container.HostConfig
	Network *network.NetworkingConfig `json:",omitempty"`
	ImageID string
	Extra   Extra
	Mounts  []place
	Devices []runspec.Device `json:",omitempty"`
}

// place is a mount of the container: what the API shows, and what is done.
type place struct {
	Point container.MountPoint
	Mount runspec.Mount
	// Volume is the name of the volume, if it is one; Fill has it filled with
	// what the image holds there, while it is empty; Anonymous ones go with
	// the container.
	Volume          string `json:",omitempty"`
	Fill, Anonymous bool   `json:",omitempty"`
	// Hidden mounts are the container's own affair, as the API shows it.
	Hidden bool `json:",omitempty"`
}

// status is what became of a container.
type status struct {
	Running, Paused, Restarting bool
	OOMKilled                   bool `json:",omitempty"`
	Pid                         int
	ExitCode                    int
	Error                       string `json:",omitempty"`
	StartedAt, FinishedAt       time.Time
	Restarts                    int
	// Overlays are its places on networks of the swarm since it was last started.
	Overlays []object.Overlay `json:",omitempty"`
	// Stopped says that a user wanted it to end: no restart policy applies.
	Stopped bool
}

// Each container has two sealed files. The state changes often and what it
// says can be found out again, so it is not synced to disk.
const (
	recordFile = "config"
	stateFile  = "state"
)

func (e *Engine) saveRecord(r *record) error { return e.save(r.ID, recordFile, r, true) }

func (e *Engine) saveState(id string, s *status) error { return e.save(id, stateFile, s, false) }

func sealDomain(id, file string) string { return "container/" + id + "/" + file }

func (e *Engine) save(id, file string, v any, sync bool) error {
	plain, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("save container: %w", err)
	}
	e.saving.RLock()
	defer e.saving.RUnlock()
	if err := e.write(filepath.Join(e.dir(id), file), e.cfg.Sealer.Seal(sealDomain(id, file), plain), sync); err != nil {
		return fmt.Errorf("save container: %w", err)
	}
	return nil
}

// tmpSuffix is the end of the name of a file that is not whole yet.
const tmpSuffix = ".tmp"

func (e *Engine) write(path string, sealed []byte, sync bool) error {
	tmp, err := os.OpenFile(path+tmpSuffix, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(sealed)
	if sync && err == nil {
		err = tmp.Sync()
	}
	if err = errors.Join(err, tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}

func (e *Engine) read(id, file string, v any) error {
	sealed, err := os.ReadFile(filepath.Join(e.dir(id), file))
	if err != nil {
		return fmt.Errorf("read container: %w", err)
	}
	plain, err := e.cfg.Sealer.Open(sealDomain(id, file), sealed)
	if err != nil {
		return fmt.Errorf("read container %s: %w", id, err)
	}
	if err := json.Unmarshal(plain, v); err != nil {
		return fmt.Errorf("read container %s: %w", id, err)
	}
	return nil
}

// readStatus is empty for a container that has none: it was never started, or
// the machine lost power when it had just been.
func (e *Engine) readStatus(id string) (s status, err error) {
	err = e.read(id, stateFile, &s)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	return s, err
}
