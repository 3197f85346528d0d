package containers

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/storage"

	"skep/exec/runspec"
)

// Inspect tells all about a container.
func (e *Engine) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	c, err := e.find(ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	r := c.rec()
	cmd := runspec.Command(&r.Config)
	host := r.Host
	host.LogConfig.Type = cmp.Or(host.LogConfig.Type, "json-file")
	if host.RestartPolicy.Name == "" {
		host.RestartPolicy.Name = container.RestartPolicyDisabled
	}
	dir := e.dir(c.id)
	resp := container.InspectResponse{
		ID: c.id, Created: r.Created.Format(time.RFC3339Nano), Path: cmd[0], Args: cmd[1:],
		Image: r.ImageID, Name: "/" + r.Name, Driver: "overlay2", Platform: "linux",
		HostnamePath: filepath.Join(dir, "hostname"), HostsPath: filepath.Join(dir, "hosts"),
		ResolvConfPath: filepath.Join(dir, "resolv.conf"), LogPath: filepath.Join(e.logDir(c.id), "log"),
		HostConfig: &host, Config: &r.Config, Mounts: points(&r),
		GraphDriver:     &storage.DriverData{Name: "overlay2", Data: map[string]string{"UpperDir": filepath.Join(dir, "upper"), "WorkDir": filepath.Join(dir, "work")}},
		NetworkSettings: e.settings(c, &r),
	}
	c.mu.Lock()
	resp.State, resp.RestartCount = c.stateLocked(), c.st.Restarts
	resp.ExecIDs = slices.Sorted(maps.Keys(c.execs))
	c.mu.Unlock()
	if size {
		rw, all, err := e.sizes(ctx, &r)
		if err != nil {
			return resp, err
		}
		resp.SizeRw, resp.SizeRootFs = &rw, &all
	}
	return resp, nil
}

func (c *instance) stateLocked() *container.State {
	s := &c.st
	out := &container.State{
		Status: s.word(), Running: s.Running, Paused: s.Paused, Restarting: s.Restarting,
		OOMKilled: s.OOMKilled, Pid: s.Pid, ExitCode: s.ExitCode, Error: s.Error,
		StartedAt: s.StartedAt.Format(time.RFC3339Nano), FinishedAt: s.FinishedAt.Format(time.RFC3339Nano),
	}
	if c.health != nil {
		h := *c.health
		out.Health = &h
	}
	return out
}

func (s *status) word() container.ContainerState {
	switch {
	case s.Restarting:
		return container.StateRestarting
	case s.Paused:
		return container.StatePaused
	case s.Running:
		return container.StateRunning
	case s.StartedAt.IsZero():
		return container.StateCreated
	}
	return container.StateExited
}

func points(r *record) []container.MountPoint {
	list := []container.MountPoint{}
	for _, m := range r.Mounts {
		if !m.Hidden {
			list = append(list, m.Point)
		}
	}
	return list
}

// List tells about the containers, the newest first.
func (e *Engine) List(ctx context.Context, all, size bool) ([]container.Summary, error) {
	list := []container.Summary{}
	for _, c := range slices.Backward(e.all()) {
		if c.isRemoved() || !all && !c.status().Running {
			continue
		}
		s, err := e.summary(ctx, c, size)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

func (e *Engine) summary(ctx context.Context, c *instance, size bool) (container.Summary, error) {
	r := c.rec()
	nets := e.settings(c, &r)
	s := container.Summary{
		ID: c.id, Names: []string{"/" + r.Name}, Image: r.Config.Image, ImageID: r.ImageID,
		Command: quoted(runspec.Command(&r.Config)), Created: r.Created.Unix(), Labels: r.Config.Labels,
		Ports: []container.PortSummary{}, Mounts: points(&r),
		NetworkSettings: &container.NetworkSettingsSummary{Networks: nets.Networks},
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	s.HostConfig.NetworkMode = string(r.Host.NetworkMode)
	for p, bindings := range nets.Ports {
		if len(bindings) == 0 {
			s.Ports = append(s.Ports, container.PortSummary{PrivatePort: p.Num(), Type: string(p.Proto())})
		}
		for _, b := range bindings {
			pub, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				continue
			}
			s.Ports = append(s.Ports, container.PortSummary{IP: b.HostIP, PrivatePort: p.Num(), PublicPort: uint16(pub), Type: string(p.Proto())})
		}
	}
	slices.SortFunc(s.Ports, func(a, b container.PortSummary) int {
		return cmp.Or(cmp.Compare(a.PrivatePort, b.PrivatePort), cmp.Compare(a.PublicPort, b.PublicPort), cmp.Compare(a.Type, b.Type))
	})
	c.mu.Lock()
	s.State, s.Status = c.st.word(), c.sinceLocked(time.Now())
	s.Health = &container.HealthSummary{Status: container.NoHealthcheck}
	if c.health != nil {
		s.Health = &container.HealthSummary{Status: c.health.Status, FailingStreak: c.health.FailingStreak}
	}
	c.mu.Unlock()
	if size {
		var err error
		if s.SizeRw, s.SizeRootFs, err = e.sizes(ctx, &r); err != nil {
			return s, err
		}
	}
	return s, nil
}

// quoted shows a command as one line, words with blanks in quotes.
func quoted(cmd []string) string {
	words := slices.Clone(cmd)
	for i := 1; i < len(words); i++ {
		if strings.ContainsAny(words[i], " \t\n") {
			words[i] = "'" + words[i] + "'"
		}
	}
	return strings.Join(words, " ")
}

// sinceLocked is the container's state as a person would say it.
func (c *instance) sinceLocked(now time.Time) string {
	s := &c.st
	switch s.word() {
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s ago", s.ExitCode, units.HumanDuration(now.Sub(s.FinishedAt)))
	case container.StatePaused:
		return fmt.Sprintf("Up %s (Paused)", units.HumanDuration(now.Sub(s.StartedAt)))
	case container.StateRunning:
		up := "Up " + units.HumanDuration(now.Sub(s.StartedAt))
		switch {
		case c.health == nil:
			return up
		case c.health.Status == container.Starting:
			return up + " (health: starting)"
		}
		return up + " (" + string(c.health.Status) + ")"
	case container.StateCreated:
		return "Created"
	default:
		return fmt.Sprintf("Exited (%d) %s ago", s.ExitCode, units.HumanDuration(now.Sub(s.FinishedAt)))
	}
}

// sizes are the bytes that the container wrote, and those with its image's.
func (e *Engine) sizes(ctx context.Context, r *record) (rw, all int64, err error) {
	rootfs, err := e.cfg.Images.Rootfs(ctx, r.ImageID)
	if err != nil {
		return 0, 0, err
	}
	defer rootfs.Release()
	if rw, err = treeSize(ctx, filepath.Join(e.dir(r.ID), "upper")); err != nil {
		return 0, 0, err
	}
	all = rw
	for _, l := range rootfs.Lower {
		n, err := treeSize(ctx, l)
		if err != nil {
			return 0, 0, err
		}
		all += n
	}
	return rw, all, nil
}

func treeSize(ctx context.Context, dir string) (total int64, err error) {
	seen := map[uint64]bool{}
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			if gone(err) {
				return nil // a container at work
			}
			return err
		}
		info, err := d.Info()
		if err != nil || !info.Mode().IsRegular() {
			return nil //nolint:nilerr // it was removed meanwhile
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !seen[st.Ino] {
			seen[st.Ino] = true
			total += info.Size()
		}
		return ctx.Err()
	})
	return total, err
}
