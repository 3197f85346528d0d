package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/api/types/swarm"

	"skep/store"
	"skep/store/object"
	"skep/store/storetest"
)

func task(id, service, node string) *object.Task {
	return &object.Task{ID: id, ServiceID: service, NodeID: node, DesiredState: swarm.TaskStateRunning}
}

func secret(id, name string) *object.Secret {
	s := new(object.Secret)
	s.ID, s.Spec.Name = id, name
	return s
}

func spec(name, image string) swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: name},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: image}},
		Mode:         swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(3))}},
	}
}

func keys[T object.Object](seq func(func(T) bool)) (ks []string) {
	for o := range seq {
		ks = append(ks, o.Key())
	}
	return ks
}

func TestTable_IndexesFollowChanges(t *testing.T) {
	db := storetest.New(t)
	db.Write(t, func(tx *store.Tx) {
		for _, x := range []*object.Task{task("c", "s1", "n1"), task("a", "s1", "n2"), task("b", "s2", "n1")} {
			x.SpecVersion.Index = 7
			tx.Create(x)
		}
	})
	before := db.Snapshot()
	after := db.Write(t, func(tx *store.Tx) {
		x, _ := tx.Base().Tasks.Get("a")
		x = x.Clone().(*object.Task)
		x.NodeID, x.SpecVersion.Index = "n1", 8
		tx.Update(x)
		y, _ := tx.Base().Tasks.Get("b")
		tx.Delete(y)
	})
	for _, tt := range []struct {
		of   *store.Snapshot
		by   store.Index
		key  string
		want []string
	}{
		{before, store.ByNode, "n1", []string{"b", "c"}},
		{before, store.ByService, "s1", []string{"a", "c"}},
		{before, store.ByRevision, "s1/7", []string{"a", "c"}},
		{after, store.ByNode, "n1", []string{"a", "c"}},
		{after, store.ByNode, "n2", nil},
		{after, store.ByService, "s2", nil},
		{after, store.ByRevision, "s1/7", []string{"c"}},
		{after, store.ByRevision, "s1/8", []string{"a"}},
		{after, store.ByRevision, "nonsense", nil},
	} {
		if got := keys(tt.of.Tasks.By(tt.by, tt.key)); !slices.Equal(got, tt.want) {
			t.Errorf("by %s %s: got %v, want %v", tt.by, tt.key, got, tt.want)
		}
	}
	if got := keys(before.Tasks.All()); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("the snapshot from before the change holds %v", got)
	}
	if got, want := after.Tasks.Len(), 2; got != want {
		t.Errorf("%d tasks, want %d", got, want)
	}
}

func TestTable_FindTakesIDThenNameThenPrefix(t *testing.T) {
	db := storetest.New(t)
	s := db.Write(t, func(tx *store.Tx) {
		tx.Create(secret("abc1", "x"))
		tx.Create(secret("abc2", "abc1")) // named as the other's ID
		tx.Create(secret("b1", "ab"))     // named as a prefix of IDs
		tx.Create(secret("c1", "Upper"))
	})
	for _, tt := range []struct{ ref, want, err string }{
		{ref: "abc1", want: "abc1"},
		{ref: "x", want: "abc1"},
		{ref: "ab", want: "b1"},
		{ref: "abc2", want: "abc2"},
		{ref: "b", want: "b1"},
		{ref: "Upper", want: "c1"},
		{ref: "upper", err: "secret upper not found"},
		{ref: "a", err: "secret a is ambiguous (2 matches found)"},
		{ref: "", err: "secret  not found"},
	} {
		got, err := s.Secrets.Find(tt.ref)
		switch {
		case tt.err != "":
			if err == nil || err.Error() != tt.err {
				t.Errorf("find %q: error %v, want %q", tt.ref, err, tt.err)
			}
			if want := map[bool]error{true: errdefs.ErrInvalidArgument, false: errdefs.ErrNotFound}[strings.Contains(tt.err, "ambiguous")]; !errors.Is(err, want) {
				t.Errorf("find %q: %v is not of the kind %v", tt.ref, err, want)
			}
		case err != nil || got.ID != tt.want:
			t.Errorf("find %q: got %v, %v, want %s", tt.ref, got, err, tt.want)
		}
	}
}

func TestTx_IsRefusedWhenItsObjectsChanged(t *testing.T) {
	db := storetest.New(t)
	old := db.Write(t, func(tx *store.Tx) { tx.Create(task("a", "s", "")); tx.Create(task("b", "s", "")) })
	a, _ := old.Tasks.Get("a")
	b, _ := old.Tasks.Get("b")
	db.Write(t, func(tx *store.Tx) { tx.Update(a.Clone()) })
	db.Write(t, func(tx *store.Tx) { tx.Delete(b) })
	for name, do := range map[string]func(tx *store.Tx){
		"update":         func(tx *store.Tx) { tx.Update(a.Clone()) },
		"delete":         func(tx *store.Tx) { tx.Delete(a) },
		"update deleted": func(tx *store.Tx) { tx.Update(b.Clone()) },
		"one of two":     func(tx *store.Tx) { tx.Create(task("new", "s", "")); tx.Delete(a) },
	} {
		tx := store.Begin(old)
		do(tx)
		_, err := db.Propose(t.Context(), tx)
		if !errors.Is(err, store.ErrSequence) {
			t.Errorf("%s: error %v, want %v", name, err, store.ErrSequence)
		}
	}
	if _, ok := db.Snapshot().Tasks.Get("new"); ok {
		t.Error("a refused transaction left something behind")
	}
}

// What depends on an object, and what removes it, do not both come about.
func TestTx_DependsOnWhatItDoesNotChange(t *testing.T) {
	front := new(object.Network)
	front.ID, front.Spec.Name = "front", "front"
	mesh := new(object.Network)
	mesh.ID, mesh.Spec.Name, mesh.Spec.Ingress = "mesh", "mesh", true
	asking := func(change func(*swarm.ServiceSpec)) *object.Service {
		o := new(object.Service)
		o.ID, o.Spec = "web", spec("web", "busybox")
		change(&o.Spec)
		return o
	}
	for _, tt := range []struct {
		name string
		on   object.Object // what is referred to
		ref  object.Object
	}{
		{"a service on a network", front, asking(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: "front"}}
		})},
		{"a service that publishes a port", mesh, asking(func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
		})},
		{"a guest on a network", front, &object.Guest{ID: "g", Network: object.TaskNetwork{ID: "front"}}},
		{"a service with a secret", secret("key", "key"), asking(func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "key"}}
		})},
	} {
		t.Run(tt.name, func(t *testing.T) {
			db := storetest.New(t)
			old := db.Write(t, func(tx *store.Tx) { tx.Create(tt.on.Clone()) })
			on := old.Get(tt.on.Kind(), tt.on.Key())
			refer := func(s *store.Snapshot) error {
				tx := store.Begin(s)
				tx.There(on)
				tx.Create(tt.ref.Clone())
				_, err := db.Propose(t.Context(), tx)
				return err
			}
			remove := func() error {
				tx := store.Begin(old)
				tx.Unused(on)
				tx.Delete(on)
				_, err := db.Propose(t.Context(), tx)
				return err
			}
			if err := refer(old); err != nil {
				t.Fatal(err)
			}
			if err := remove(); !errors.Is(err, store.ErrSequence) || db.Snapshot().Get(on.Kind(), on.Key()) == nil {
				t.Errorf("removed what is referred to: %v", err)
			}
			db.Write(t, func(tx *store.Tx) { tx.Delete(tx.Base().Get(tt.ref.Kind(), tt.ref.Key())) })
			if err := remove(); err != nil {
				t.Errorf("did not remove what nothing refers to: %v", err)
			}
			if err := refer(old); !errors.Is(err, store.ErrSequence) {
				t.Errorf("referred to what was removed: %v", err)
			}
			db.Write(t, func(tx *store.Tx) { tx.Create(tt.on.Clone()) })
			if err := refer(old); !errors.Is(err, store.ErrSequence) {
				t.Errorf("referred to another of the same ID: %v", err)
			}
		})
	}
}

func TestTx_NamesAreUniqueWhateverTheCase(t *testing.T) {
	db := storetest.New(t)
	db.Write(t, func(tx *store.Tx) {
		store.CreateService(tx, spec("Web", "i"), nil)
		tx.Create(secret("1", "Web"))
	})
	for _, tt := range []struct {
		do   func(tx *store.Tx)
		want string
	}{
		{func(tx *store.Tx) { store.CreateService(tx, spec("web", "i"), nil) }, "name conflicts with an existing object: service web already exists"},
		{func(tx *store.Tx) { tx.Create(secret("2", "wEB")) }, "secret wEB already exists"},
		{func(tx *store.Tx) { tx.Create(secret("2", "n")); tx.Create(secret("3", "n")) }, "secret n already exists"},
		{func(tx *store.Tx) { tx.Create(secret("1", "other")) }, "secret 1 already exists"},
	} {
		tx := store.Begin(db.Snapshot())
		tt.do(tx)
		_, err := db.Propose(t.Context(), tx)
		if err == nil || err.Error() != tt.want || !errors.Is(err, errdefs.ErrAlreadyExists) {
			t.Errorf("got %v, want %q", err, tt.want)
		}
	}
	// A name may move in one transaction.
	db.Write(t, func(tx *store.Tx) {
		tx.Create(secret("2", "web"))
		one, _ := tx.Base().Secrets.Get("1")
		tx.Delete(one)
	})
}

func TestTx_SaysTheSameOfOneObjectOnce(t *testing.T) {
	db := storetest.New(t)
	s := db.Write(t, func(tx *store.Tx) {
		tx.Create(task("gone", "", ""))
		tx.Create(task("a", "", ""))
		x := task("a", "", "n")
		tx.Update(x)
		tx.Delete(task("gone", "", ""))
	})
	if got := keys(s.Tasks.By(store.ByNode, "n")); !slices.Equal(got, []string{"a"}) || s.Tasks.Len() != 1 {
		t.Errorf("got %v of %d", got, s.Tasks.Len())
	}
}

func TestStore_VersionsAndTimesAreThoseOfTheChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.New(t)
		start := time.Now()
		db.Write(t, func(tx *store.Tx) { tx.Create(task("a", "", "")) })
		time.Sleep(time.Minute)
		s := db.Write(t, func(tx *store.Tx) {
			a, _ := tx.Base().Tasks.Get("a")
			tx.Update(a.Clone())
		})
		a, _ := s.Tasks.Get("a")
		want := swarm.Meta{Version: swarm.Version{Index: 2}, CreatedAt: start.UTC(), UpdatedAt: start.Add(time.Minute).UTC()}
		if diff := cmp.Diff(want, a.Meta); diff != "" || s.Index != 2 {
			t.Errorf("at index %d: %s", s.Index, diff)
		}
	})
}

func TestStore_SinceTellsWhatChangedAndWhen(t *testing.T) {
	db := storetest.New(t)
	if c := db.Since(0); !c.All {
		t.Error("who has seen nothing was not told to look at all")
	}
	one := db.Write(t, func(tx *store.Tx) { tx.Create(task("a", "", "")) })
	c := db.Since(one.Index)
	if c.All || len(c.Keys) != 0 {
		t.Errorf("nothing changed, got %v", c)
	}
	select {
	case <-c.News:
		t.Fatal("news of nothing")
	default:
	}
	tx := store.Begin(one)
	tx.Create(task("a", "", "")) // refused: no news
	if _, err := db.Propose(t.Context(), tx); err == nil {
		t.Fatal("created a task twice")
	}
	select {
	case <-c.News:
		t.Fatal("news of a refused transaction")
	default:
	}
	two := db.Write(t, func(tx *store.Tx) {
		a, _ := tx.Base().Tasks.Get("a")
		tx.Update(a.Clone())
		tx.Create(task("b", "", ""))
	})
	select {
	case <-c.News:
	default:
		t.Fatal("no news of a change")
	}
	db.Write(t, func(tx *store.Tx) {
		a, _ := tx.Base().Tasks.Get("a")
		tx.Delete(a)
	})
	got := db.Since(one.Index)
	want := []store.Key{{Kind: object.KindTask, ID: "a"}, {Kind: object.KindTask, ID: "b"}}
	if diff := cmp.Diff(want, got.Keys); diff != "" || got.All {
		t.Errorf("all %v, keys %s", got.All, diff)
	}
	if c := db.Since(two.Index); len(c.Keys) != 1 {
		t.Errorf("since the second change: %v", c.Keys)
	}
}

func TestStore_WhoIsTooFarBehindLooksAtEverything(t *testing.T) {
	db := storetest.New(t)
	first := db.Write(t, func(tx *store.Tx) { tx.Create(task("a", "", "")) })
	for range 40 {
		db.Write(t, func(tx *store.Tx) {
			for range 1000 {
				tx.Create(task(object.NewID(), "", ""))
			}
		})
	}
	if c := db.Since(first.Index); !c.All {
		t.Errorf("got %d keys", len(c.Keys))
	}
	late := db.Snapshot().Index - 2
	if c := db.Since(late); c.All || len(c.Keys) != 2000 {
		t.Errorf("two changes ago: all %v, %d keys", c.All, len(c.Keys))
	}
}

func TestService_RevisionChangesOnlyWithWhatTasksRun(t *testing.T) {
	db := storetest.New(t)
	var id string
	s := db.Write(t, func(tx *store.Tx) { id = store.CreateService(tx, spec("web", "one"), nil).ID })
	check := func(step string, s *store.Snapshot, version uint64, image string) *object.Service {
		t.Helper()
		svc, _ := s.Services.Get(id)
		if svc.SpecVersion.Index != version {
			t.Errorf("%s: spec version %d, want %d", step, svc.SpecVersion.Index, version)
		}
		rev := s.Revision(id, svc.SpecVersion)
		if byKey, ok := s.Revisions.Get(object.RevisionKey(id, svc.SpecVersion)); !ok || byKey != rev {
			t.Fatalf("%s: no revision", step)
		}
		if got := rev.Spec.ContainerSpec.Image; got != image {
			t.Errorf("%s: image %s, want %s", step, got, image)
		}
		return svc
	}
	svc := check("create", s, 1, "one")

	scaled := object.Copy(svc.Spec)
	scaled.Mode.Replicated.Replicas = new(uint64(9))
	s = db.Write(t, func(tx *store.Tx) { store.UpdateService(tx, svc, scaled, nil) })
	svc = check("scale", s, 1, "one")
	if svc.Version.Index != 2 || *svc.PreviousSpec.Mode.Replicated.Replicas != 3 {
		t.Errorf("after scaling: version %d, previous %v", svc.Version.Index, svc.PreviousSpec.Mode)
	}

	s = db.Write(t, func(tx *store.Tx) { store.UpdateService(tx, svc, spec("web", "two"), nil) })
	svc = check("update", s, 3, "two")

	s = db.Write(t, func(tx *store.Tx) { store.RollbackService(tx, svc, false, "manually requested rollback", time.Now()) })
	svc = check("rollback", s, 4, "one")
	if svc.PreviousSpec.TaskTemplate.ContainerSpec.Image != "two" || *svc.Spec.Mode.Replicated.Replicas != 9 {
		t.Errorf("after rollback: %+v", svc)
	}
	if n := len(keys(s.Revisions.By(store.ByService, id))); n != 3 {
		t.Errorf("%d revisions, want 3", n)
	}
}
