package store

import (
	"strings"

	"github.com/containerd/errdefs"

	"skep/store/object"
)

// Find is the object that a user means by ref: its full ID, else its exact
// name, else an unambiguous beginning of its ID.
func (t *Table[T]) Find(ref string) (found T, err error) {
	if o, ok := t.Get(ref); ok {
		return o, nil
	}
	n := 0
	if ref != "" && len(t.schema.orders) > 0 && t.schema.orders[0].by == ByName {
		for o := range t.By(ByName, ref) {
			if Name(o) == ref {
				found, n = o, n+1
			}
		}
	}
	if ref != "" && n == 0 {
		p := t.schema.pool.New().(T)
		t.schema.id.search(p, ref)
		t.rows.Ascend(p, func(o T) bool {
			if !strings.HasPrefix(o.Key(), ref) {
				return false
			}
			found, n = o, n+1
			return true
		})
	}
	var none T
	switch n {
	case 1:
		return found, nil
	case 0:
		return none, object.Errorf(errdefs.ErrNotFound, "%s %s not found", t.schema.kind, ref)
	default:
		return none, object.Errorf(errdefs.ErrInvalidArgument, "%s %s is ambiguous (%d matches found)", t.schema.kind, ref, n)
	}
}

// Name is what users call an object, empty if it has no name.
func Name(o object.Object) string {
	switch o := o.(type) {
	case *object.Cluster:
		return o.Spec.Name
	case *object.Node:
		return o.Description.Hostname
	case *object.Service:
		return o.Spec.Name
	case *object.Secret:
		return o.Spec.Name
	case *object.Config:
		return o.Spec.Name
	case *object.Network:
		return o.Spec.Name
	default:
		return ""
	}
}
