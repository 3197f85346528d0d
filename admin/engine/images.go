package engine

import (
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"skep/admin"
)

// Names of images hold slashes: what stands after the name is told apart in
// the handlers.
func (a *API) imageRoutes() []admin.Route {
	return []admin.Route{
		a.read("GET /images/json", a.imageList),
		a.read("GET /images/search", refuse("searching registries is")),
		a.read("GET /images/get", a.imageSave),
		a.read("GET /images/{name...}", a.imageGet),
		a.write(admin.Operator, "POST /images/create", a.imageCreate),
		stream(a.write(admin.Operator, "POST /images/load", a.imageLoad)),
		a.write(admin.Operator, "POST /images/prune", a.imagePrune),
		a.write(admin.Operator, "POST /images/{name...}", a.imagePost),
		a.write(admin.Operator, "DELETE /images/{name...}", a.imageRemove),
	}
}

func (a *API) imageGet(w http.ResponseWriter, r *http.Request) error {
	name, verb := nameAndVerb(r, "name")
	if name == "" {
		verb = ""
	}
	switch verb {
	case "json":
		return a.imageInspect(w, r, name)
	case "history":
		return a.imageHistory(w, r, name)
	case "get":
		return a.save(w, r, []string{name})
	}
	NotFound(w, r)
	return nil
}

func (a *API) imagePost(w http.ResponseWriter, r *http.Request) error {
	name, verb := nameAndVerb(r, "name")
	if name == "" {
		verb = ""
	}
	switch verb {
	case "tag":
		return a.imageTag(w, r, name)
	case "push":
		return a.imagePush(w, r, name)
	}
	NotFound(w, r)
	return nil
}

func (a *API) imageInspect(w http.ResponseWriter, r *http.Request, name string) error {
	i, err := a.Images.Inspect(r.Context(), name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, imageShape(i, minorOf(r)))
}

func (a *API) imageHistory(w http.ResponseWriter, r *http.Request, name string) error {
	history, err := a.Images.History(r.Context(), name)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, listed(history))
}

// imageCreate pulls an image.
func (a *API) imageCreate(w http.ResponseWriter, r *http.Request) error {
	if param(r, "fromSrc") != "" {
		return unbuilt("importing root file systems is")
	}
	ref, err := withTag(param(r, "fromImage"), param(r, "tag"))
	if err != nil {
		return err
	}
	platform := param(r, "platform")
	if platform != "" {
		if _, err = parsePlatform(platform); err != nil {
			return err
		}
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	admin.NameObject(r.Context(), ref)
	p := &progress{w: w}
	return p.end(a.Images.Pull(r.Context(), ref, platform, auth, p.send))
}

// withTag is the whole reference of an image that comes in two parameters; the
// second may be a digest. Without either it is the tag latest.
func withTag(name, tag string) (string, error) {
	// "docker pull --all-tags" may leave a colon behind.
	named, err := reference.ParseNormalizedNamed(strings.TrimSuffix(name, ":"))
	if err != nil {
		return "", invalid("invalid reference format: %v", err)
	}
	if tag == "" {
		return reference.TagNameOnly(named).String(), nil
	}
	separator := ":"
	if strings.Contains(tag, ":") {
		separator = "@"
	}
	named, err = reference.ParseNormalizedNamed(reference.TrimNamed(named).Name() + separator + tag)
	if err != nil {
		return "", invalid("invalid reference format: %v", err)
	}
	return named.String(), nil
}

func parsePlatform(s string) (ocispec.Platform, error) {
	p, err := platforms.Parse(s)
	if err != nil {
		return p, invalid("invalid platform: %v", err)
	}
	return p, nil
}

// imageLoad tells how it goes on while the archive is still being sent.
func (a *API) imageLoad(w http.ResponseWriter, r *http.Request) error {
	// HTTP/2 is so without being told, and refuses.
	_ = http.NewResponseController(w).EnableFullDuplex()
	p := &progress{w: w}
	err := p.end(a.Images.Load(r.Context(), r.Body, p.send))
	// A client that is still sending would take a reply now for a reset.
	_, _ = io.Copy(io.Discard, r.Body)
	return err
}

func (a *API) imageTag(w http.ResponseWriter, r *http.Request, name string) error {
	target, err := withTag(param(r, "repo"), param(r, "tag"))
	if err != nil {
		return err
	}
	if strings.Contains(target, "@") {
		return invalid("refusing to create a tag with a digest reference")
	}
	if err := a.Images.Tag(r.Context(), name, target); err != nil {
		return err
	}
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (a *API) imagePush(w http.ResponseWriter, r *http.Request, name string) error {
	ref, err := withTag(name, param(r, "tag"))
	if err != nil {
		return err
	}
	auth, err := registryAuth(r)
	if err != nil {
		return err
	}
	p := &progress{w: w}
	return p.end(a.Images.Push(r.Context(), ref, auth, p.send))
}

func (a *API) imageRemove(w http.ResponseWriter, r *http.Request) error {
	removed, err := a.Images.Remove(r.Context(), r.PathValue("name"), flag(r, "force"), !flag(r, "noprune"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, listed(removed))
}

func (a *API) imagePrune(w http.ResponseWriter, r *http.Request) error {
	f, err := filterBy(r, "dangling", "label", "label!", "until")
	if err != nil {
		return err
	}
	dangling, err := f.Bool("dangling", true)
	if err != nil {
		return err
	}
	until, err := untilFilter(f, time.Now())
	if err != nil {
		return err
	}
	report, err := a.Images.Prune(r.Context(), dangling, func(i image.Summary) bool {
		return !labelled(f, i.Labels) || !until.IsZero() && !time.Unix(i.Created, 0).Before(until)
	})
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, report)
}

func (a *API) imageSave(w http.ResponseWriter, r *http.Request) error {
	names := r.URL.Query()["names"]
	if len(names) == 0 {
		return invalid("no images to save: names is missing")
	}
	return a.save(w, r, names)
}

func (a *API) save(w http.ResponseWriter, r *http.Request, names []string) error {
	w.Header().Set("Content-Type", "application/x-tar")
	return a.Images.Save(r.Context(), names, w)
}
