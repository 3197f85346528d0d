package tasks

import (
	"fmt"
	"path"
	"strconv"
	"strings"
	"text/template"

	"github.com/moby/moby/api/types/swarm"

	"skep/exec/containers"
	"skep/store/object"
)

// secretsDir is where a secret with a relative target is found in a container.
const secretsDir = "/run/secrets"

// files are the secrets and configs that the task's container gets.
func files(a *object.Assignment) ([]containers.File, error) {
	spec := a.Revision.Spec.ContainerSpec
	t := &templates{a: a, scope: scopeOf(a)}
	var out []containers.File
	for _, ref := range spec.Secrets {
		if ref.File == nil {
			continue
		}
		data, err := t.secret(ref)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", ref.SecretName, err)
		}
		f, err := file(secretsDir, ref.File.Name, ref.File.UID, ref.File.GID)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", ref.SecretName, err)
		}
		f.Data, f.Mode = data, ref.File.Mode
		out = append(out, f)
	}
	for _, ref := range spec.Configs {
		if ref.File == nil {
			continue
		}
		data, err := t.config(ref)
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", ref.ConfigName, err)
		}
		f, err := file("/", ref.File.Name, ref.File.UID, ref.File.GID)
		if err != nil {
			return nil, fmt.Errorf("config %s: %w", ref.ConfigName, err)
		}
		f.Data, f.Mode = data, ref.File.Mode
		out = append(out, f)
	}
	return out, nil
}

func file(dir, name, uid, gid string) (containers.File, error) {
	if !path.IsAbs(name) {
		name = path.Join(dir, name)
	}
	f := containers.File{Target: name}
	for _, id := range []struct {
		text string
		to   *int
	}{{uid, &f.UID}, {gid, &f.GID}} {
		if id.text == "" {
			continue
		}
		n, err := strconv.Atoi(id.text)
		if err != nil {
			return f, fmt.Errorf("owner %q: want a number", id.text)
		}
		*id.to = n
	}
	return f, nil
}

// templates expands secrets and configs that refer to each other. Only plain
// data is reachable from a template, so that no reference can go in a circle.
type templates struct {
	a     *object.Assignment
	scope scope
}

func (t *templates) secret(ref *swarm.SecretReference) ([]byte, error) {
	for _, s := range t.a.Secrets {
		if s.ID == ref.SecretID {
			return t.scope.payload(s.Spec.Data, s.Spec.Templating, t.functions())
		}
	}
	return nil, fmt.Errorf("not assigned to this node")
}

func (t *templates) config(ref *swarm.ConfigReference) ([]byte, error) {
	for _, c := range t.a.Configs {
		if c.ID == ref.ConfigID {
			return t.scope.payload(c.Spec.Data, c.Spec.Templating, t.functions())
		}
	}
	return nil, fmt.Errorf("not assigned to this node")
}

func (t *templates) functions() template.FuncMap {
	spec := t.a.Revision.Spec.ContainerSpec
	return template.FuncMap{
		"secret": func(target string) (string, error) {
			for _, ref := range spec.Secrets {
				if ref.File == nil || ref.File.Name != target {
					continue
				}
				for _, s := range t.a.Secrets {
					if s.ID == ref.SecretID {
						return string(s.Spec.Data), nil
					}
				}
			}
			return "", fmt.Errorf("secret target %s not found", target)
		},
		"config": func(target string) (string, error) {
			for _, ref := range spec.Configs {
				if ref.File == nil || ref.File.Name != target {
					continue
				}
				for _, c := range t.a.Configs {
					if c.ID == ref.ConfigID {
						return string(c.Spec.Data), nil
					}
				}
			}
			return "", fmt.Errorf("config target %s not found", target)
		},
		"env": func(name string) (string, error) {
			for _, e := range spec.Env {
				if v, ok := strings.CutPrefix(e, name+"="); ok {
					return v, nil
				}
			}
			return "", nil
		},
	}
}
