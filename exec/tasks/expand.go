package tasks

import (
	"fmt"
	"strconv"
	"strings"
	"text/template"

	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

// maxExpanded bounds what one template may grow to: a config's largest size.
const maxExpanded = 1000 * 1024

// scope is what a template of a service spec can name: {{.Service.Name}},
// {{.Node.Hostname}}, {{.Task.Slot}} and so on.
type scope struct {
	Service struct {
		ID, Name string
		Labels   map[string]string
	}
	Node struct {
		ID, Hostname string
		Platform     struct{ Architecture, OS string }
	}
	Task struct {
		ID, Name, Slot string
	}
}

func scopeOf(a *object.Assignment) scope {
	var s scope
	s.Service.ID = a.Task.ServiceID
	s.Service.Name = a.Revision.Service.Name
	s.Service.Labels = a.Revision.Service.Labels
	s.Node.ID = a.Node.ID
	s.Node.Hostname = a.Node.Hostname
	s.Node.Platform.Architecture = a.Node.Platform.Architecture
	s.Node.Platform.OS = a.Node.Platform.OS
	s.Task.ID = a.Task.ID
	s.Task.Slot = slotName(a)
	s.Task.Name = containerName(a)
	return s
}

// slotName is the slot of a replicated task and the node of a global one.
func slotName(a *object.Assignment) string {
	if a.Task.Slot == 0 {
		return a.Task.NodeID
	}
	return strconv.Itoa(a.Task.Slot)
}

// containerName is what Swarm calls a task's container:
// service.slot.task, or service.node.task for a global service.
func containerName(a *object.Assignment) string {
	return strings.Join([]string{a.Revision.Service.Name, slotName(a), a.Task.ID}, ".")
}

// expand executes text as a template over the scope; more adds functions.
func (s scope) expand(text string, more template.FuncMap) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New("expansion").Option("missingkey=error").
		Funcs(template.FuncMap{"join": strings.Join}).Funcs(more).Parse(text)
	if err != nil {
		return "", err
	}
	var out limited
	if err := t.Execute(&out, s); err != nil {
		return "", err
	}
	return out.String(), nil
}

// expandAll expands each of texts; what names them in an error.
func (s scope) expandAll(what string, texts []string) ([]string, error) {
	out := make([]string, len(texts))
	for i, text := range texts {
		var err error
		if out[i], err = s.expand(text, nil); err != nil {
			return nil, fmt.Errorf("expanding %s %q: %w", what, text, err)
		}
	}
	return out, nil
}

// payload is the data of a secret or config, expanded when it is a template.
// Such templates can also name the task's other secrets, configs and variables
// by {{secret "target"}}, {{config "target"}} and {{env "NAME"}}.
func (s scope) payload(data []byte, driver *swarm.Driver, refs template.FuncMap) ([]byte, error) {
	if driver == nil || driver.Name == "" {
		return data, nil
	}
	if driver.Name != "golang" {
		return nil, fmt.Errorf("unrecognized template type: %s", driver.Name)
	}
	out, err := s.expand(string(data), refs)
	return []byte(out), err
}

// limited is a string builder that refuses to grow past maxExpanded.
type limited struct{ strings.Builder }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxExpanded {
		return 0, fmt.Errorf("template grows past %d bytes", maxExpanded)
	}
	return l.Builder.Write(p)
}
