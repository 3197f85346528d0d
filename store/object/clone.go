package object

import "reflect"

// Copy is a copy of v that shares nothing that can be changed through exported
// fields. Unexported fields (of times and addresses) are values that nobody
// changes, and are shared.
func Copy[T any](v T) T { return *deepCopy(&v) }

func deepCopy[T any](p *T) *T {
	c := *p
	detach(reflect.ValueOf(&c).Elem())
	return &c
}

// detach replaces what v refers to by copies.
func detach(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			p := reflect.New(v.Type().Elem())
			p.Elem().Set(v.Elem())
			detach(p.Elem())
			v.Set(p)
		}
	case reflect.Struct:
		for _, f := range v.Fields() {
			if f.CanSet() {
				detach(f)
			}
		}
	case reflect.Slice:
		if v.IsNil() {
			return
		}
		s := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		reflect.Copy(s, v)
		v.Set(s)
		detachAll(v)
	case reflect.Array:
		detachAll(v)
	case reflect.Map:
		if v.IsNil() {
			return
		}
		m := reflect.MakeMapWithSize(v.Type(), v.Len())
		for it := v.MapRange(); it.Next(); {
			e := reflect.New(v.Type().Elem()).Elem()
			e.Set(it.Value())
			detach(e)
			m.SetMapIndex(it.Key(), e)
		}
		v.Set(m)
	default:
	}
}

func detachAll(v reflect.Value) {
	switch v.Type().Elem().Kind() {
	case reflect.Pointer, reflect.Struct, reflect.Slice, reflect.Array, reflect.Map:
		for i := range v.Len() {
			detach(v.Index(i))
		}
	default:
	}
}
