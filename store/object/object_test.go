package object_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"

	"skep/store/object"
)

var kinds = []object.Kind{
	object.KindCluster, object.KindNode, object.KindService, object.KindRevision,
	object.KindTask, object.KindSecret, object.KindConfig,
}

// fill sets everything that v holds to something that is not zero.
func fill(r *rand.Rand, v reflect.Value) {
	switch p := v.Addr().Interface().(type) {
	case *time.Time:
		*p = time.Unix(r.Int64N(1<<33), r.Int64N(1e9)).UTC()
		return
	case *netip.Addr:
		*p = netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(256)), 1})
		return
	case *netip.Prefix:
		*p = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(256)), 1}), 24)
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1 + r.Int64N(100))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1 + r.Uint64N(100))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(r.Float64())
	case reflect.String:
		v.SetString(fmt.Sprintf("s%d", r.IntN(1000)))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(r, v.Index(i))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range 2 {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(r, k)
			fill(r, e)
			v.SetMapIndex(k, e)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if !v.Type().Field(i).IsExported() {
				panic("unexported field in " + v.Type().String())
			}
			fill(r, v.Field(i))
		}
	default:
		panic("cannot fill " + v.Type().String())
	}
}

func filled(r *rand.Rand, k object.Kind) object.Object {
	o := object.New(k)
	fill(r, reflect.ValueOf(o).Elem())
	return o
}

var exact = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func TestCodec_KeepsEveryFieldOfEveryKind(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, k := range kinds {
		for name, o := range map[string]object.Object{"filled": filled(r, k), "zero": object.New(k)} {
			b, err := object.Encode(o)
			if err != nil {
				t.Fatalf("%s %s: %v", name, k, err)
			}
			got := object.New(k)
			if err = object.Decode(b, got); err != nil {
				t.Fatalf("%s %s: %v", name, k, err)
			}
			if diff := cmp.Diff(o, got, exact); diff != "" {
				t.Errorf("%s %s: %s", name, k, diff)
			}
			again, err := object.Encode(got)
			if err != nil || string(again) != string(b) {
				t.Errorf("%s %s is encoded in two ways (%v)", name, k, err)
			}
		}
	}
}

func TestCodec_IsStrict(t *testing.T) {
	good, err := object.Encode(map[string]any{"ID": "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := object.Decode(good, new(object.Cluster)); err != nil {
		t.Fatalf("refused what is good: %v", err)
	}
	for name, bad := range map[string]string{
		"unknown field":      "\xa1\x61x\x01",
		"other case":         "\xa1\x62id\x61x",
		"duplicate field":    "\xa2\x62ID\x61x\x62ID\x61y",
		"indefinite length":  "\xbf\x62ID\x61x\xff",
		"tag":                "\xa1\x62ID\xc1\x61x",
		"not UTF-8":          "\xa1\x62ID\x61\xff",
		"trailing byte":      string(good) + "\x00",
		"cut off":            string(good[:len(good)-1]),
		"wrong type":         "\xa1\x62ID\x01",
		"nothing":            "",
		"too deep":           strings.Repeat("\x81", 40) + "\x01",
		"more than it holds": "\x9a\xff\xff\xff\xff",
	} {
		if err := object.Decode([]byte(bad), new(object.Cluster)); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

func TestClone_SharesNothing(t *testing.T) {
	for _, k := range kinds {
		o := filled(rand.New(rand.NewPCG(3, 4)), k)
		c := o.Clone()
		if diff := cmp.Diff(o, c, exact); diff != "" {
			t.Errorf("the clone of a %s differs: %s", k, diff)
		}
		shared(t, string(k), reflect.ValueOf(o), reflect.ValueOf(c))
		c.Metadata().Version.Index = 1 << 40
		if o.Metadata().Version.Index == 1<<40 || o.Key() == "" || o.Kind() != k {
			t.Errorf("%s: metadata, key or kind is wrong", k)
		}
	}
}

// shared reports what a and b both refer to.
func shared(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	switch a.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if a.UnsafePointer() == b.UnsafePointer() && !a.IsNil() && a.Type().Elem().Size() > 0 {
			t.Errorf("%s is shared", path)
			return
		}
	default:
	}
	switch a.Kind() {
	case reflect.Pointer:
		shared(t, path, a.Elem(), b.Elem())
	case reflect.Slice:
		for i := range a.Len() {
			shared(t, path+"[]", a.Index(i), b.Index(i))
		}
	case reflect.Map:
		for _, k := range a.MapKeys() {
			shared(t, path+"[]", a.MapIndex(k), b.MapIndex(k))
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if f := a.Type().Field(i); f.IsExported() {
				shared(t, path+"."+f.Name, a.Field(i), b.Field(i))
			}
		}
	default:
	}
}

func TestNewID_HasSwarmsForm(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		id := object.NewID()
		if len(id) != 25 || strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") != "" || seen[id] {
			t.Fatalf("bad ID %q", id)
		}
		seen[id] = true
	}
}

func TestErrorf_ReadsAsTheTextAndIsOfTheKind(t *testing.T) {
	cause := errors.New("cause")
	err := fmt.Errorf("wrapped: %w", object.Errorf(errdefs.ErrNotFound, "service %s not found: %w", "x", cause))
	if got, want := err.Error(), "wrapped: service x not found: cause"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if !errdefs.IsNotFound(err) || !errors.Is(err, cause) || errdefs.IsConflict(err) {
		t.Error("the kind or the cause is lost")
	}
	if got, want := (&object.ExitError{Code: 3, Cause: cause}).Error(), "task: non-zero exit (3): cause"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestRank_OrdersTheStates(t *testing.T) {
	last := -1
	for _, s := range []swarm.TaskState{"new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "running", "complete", "shutdown", "failed", "rejected", "remove", "orphaned"} {
		if r := object.Rank(s); r <= last {
			t.Errorf("%s ranks %d, after %d", s, r, last)
		} else {
			last = r
		}
		if object.State(s) != s {
			t.Errorf("%s became %s", s, object.State(s))
		}
		if got, want := object.Ended(s), object.Rank(s) >= 576; got != want {
			t.Errorf("%s ended: %v", s, got)
		}
	}
}

func TestWithDefaults_FillsInAndLeavesTheRest(t *testing.T) {
	in := valid()
	in.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 80}}}
	out := object.WithDefaults(in)
	if in.EndpointSpec.Ports[0].Protocol != "" || in.TaskTemplate.RestartPolicy != nil {
		t.Error("changed what it was given")
	}
	want := swarm.ServiceSpec{
		Annotations: in.Annotations,
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{Image: "nginx", StopGracePeriod: new(10 * time.Second), DNSConfig: &swarm.DNSConfig{}},
			RestartPolicy: &swarm.RestartPolicy{Condition: "any", Delay: new(5 * time.Second), MaxAttempts: new(uint64)},
			Resources:     &swarm.ResourceRequirements{}, Placement: &swarm.Placement{}, Runtime: "container",
		},
		Mode:           swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: new(uint64(1))}},
		UpdateConfig:   &swarm.UpdateConfig{Parallelism: 1, FailureAction: "pause", Monitor: 5 * time.Second, Order: "stop-first"},
		RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "pause", Monitor: 5 * time.Second, Order: "stop-first"},
		EndpointSpec:   &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{{Protocol: "tcp", TargetPort: 80, PublishMode: "ingress"}}},
	}
	if diff := cmp.Diff(want, out); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(out, object.WithDefaults(out)); diff != "" {
		t.Errorf("not stable: %s", diff)
	}
	job := object.WithDefaults(swarm.ServiceSpec{Mode: swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: new(uint64(4))}}})
	if got := *job.Mode.ReplicatedJob.TotalCompletions; got != 4 {
		t.Errorf("a job of 4 at once completes %d", got)
	}
}

func valid() swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "web"},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "nginx"}},
	}
}

func TestValidateService_SaysWhatSwarmSays(t *testing.T) {
	if err := object.ValidateService(valid()); err != nil {
		t.Fatalf("refused a valid spec: %v", err)
	}
	port := func(mode, publish string, ports ...uint32) *swarm.EndpointSpec {
		e := &swarm.EndpointSpec{Mode: swarm.ResolutionMode(mode)}
		for _, p := range ports {
			e.Ports = append(e.Ports, swarm.PortConfig{TargetPort: 80, PublishedPort: p, PublishMode: swarm.PortConfigPublishMode(publish)})
		}
		return e
	}
	secret := func(id, name, target string) *swarm.SecretReference {
		return &swarm.SecretReference{SecretID: id, SecretName: name, File: &swarm.SecretReferenceFileTarget{Name: target}}
	}
	type spec = swarm.ServiceSpec
	for want, change := range map[string]func(s *spec, c *swarm.ContainerSpec){
		"":                            func(s *spec, c *swarm.ContainerSpec) { s.EndpointSpec = port("dnsrr", "host", 0, 0, 80) },
		"meta: name must be provided": func(s *spec, c *swarm.ContainerSpec) { s.Name = "" },
		"name must be valid as a DNS name component": func(s *spec, c *swarm.ContainerSpec) { s.Name = "-x" },
		"name must be 63 characters or fewer":        func(s *spec, c *swarm.ContainerSpec) { s.Name = strings.Repeat("x", 64) },
		"must specify only one service mode": func(s *spec, c *swarm.ContainerSpec) {
			s.Mode.Global, s.Mode.GlobalJob = new(swarm.GlobalService), new(swarm.GlobalJob)
		},
		"Number of replicas must be non-negative": func(s *spec, c *swarm.ContainerSpec) {
			s.Mode.Replicated = &swarm.ReplicatedService{Replicas: new(^uint64(0))}
		},
		"Jobs may not have an update config": func(s *spec, c *swarm.ContainerSpec) {
			s.Mode.GlobalJob, s.UpdateConfig = new(swarm.GlobalJob), new(swarm.UpdateConfig)
		},
		"invalid cpu value 0.0001: Must be at least 0.001": func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 1e5}}
		},
		"invalid memory value 1024: Must be at least 4MiB": func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{MemoryBytes: 1024}}
		},
		"memory swap provided, but no memory-limit was set": func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{SwapBytes: new(int64(1))}
		},
		"TaskSpec: restart-delay cannot be negative": func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Delay: new(time.Duration(-1))}
		},
		`invalid RestartCondition: "x"`: func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.RestartPolicy = &swarm.RestartPolicy{Condition: "x"}
		},
		"TaskSpec: update-delay cannot be negative":                               func(s *spec, c *swarm.ContainerSpec) { s.UpdateConfig = &swarm.UpdateConfig{Delay: -1} },
		"TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1": func(s *spec, c *swarm.ContainerSpec) { s.RollbackConfig = &swarm.UpdateConfig{MaxFailureRatio: 2} },
		"unrecognized update order x":                                             func(s *spec, c *swarm.ContainerSpec) { s.UpdateConfig = &swarm.UpdateConfig{Order: "x"} },
		"mismatched Runtime and *Spec fields":                                     func(s *spec, c *swarm.ContainerSpec) { s.TaskTemplate.ContainerSpec = nil },
		"unsupported runtime":                                                     func(s *spec, c *swarm.ContainerSpec) { s.TaskTemplate.Runtime = "x" },
		"constraint expected one operator from ==, !=": func(s *spec, c *swarm.ContainerSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"x"}}
		},
		"ContainerSpec: image reference must be provided":      func(s *spec, c *swarm.ContainerSpec) { c.Image = "" },
		`ContainerSpec: "UPPER" is not a valid repository/tag`: func(s *spec, c *swarm.ContainerSpec) { c.Image = "UPPER" },
		"ContainerSpec: duplicate mount point: /x": func(s *spec, c *swarm.ContainerSpec) {
			c.Mounts = []mount.Mount{{Type: "tmpfs", Target: "/x"}, {Type: "tmpfs", Target: "/x"}}
		},
		`invalid MountType: "x"`: func(s *spec, c *swarm.ContainerSpec) { c.Mounts = []mount.Mount{{Type: "x"}} },
		"ContainerSpec: Interval in HealthConfig cannot be less than 1ms": func(s *spec, c *swarm.ContainerSpec) { c.Healthcheck = &container.HealthConfig{Interval: 3} },
		"ContainerSpec: Retries in HealthConfig cannot be negative":       func(s *spec, c *swarm.ContainerSpec) { c.Healthcheck = &container.HealthConfig{Retries: -1} },
		"malformed secret reference":                                      func(s *spec, c *swarm.ContainerSpec) { c.Secrets = []*swarm.SecretReference{{}} },
		"secret references 'a' and 'b' have a conflicting target: 't'": func(s *spec, c *swarm.ContainerSpec) {
			c.Secrets = []*swarm.SecretReference{secret("1", "a", "t"), secret("2", "b", "t")}
		},
		"either File or Runtime should be set": func(s *spec, c *swarm.ContainerSpec) {
			c.Configs = []*swarm.ConfigReference{{ConfigID: "1", ConfigName: "a"}}
		},
		`invalid resolution mode: "x"`: func(s *spec, c *swarm.ContainerSpec) { s.EndpointSpec = port("x", "") },
		"EndpointSpec: port published with ingress mode can't be used with dnsrr mode": func(s *spec, c *swarm.ContainerSpec) { s.EndpointSpec = port("dnsrr", "", 80) },
		"EndpointSpec: duplicate published ports provided":                             func(s *spec, c *swarm.ContainerSpec) { s.EndpointSpec = port("vip", "", 80, 80) },
	} {
		s := valid()
		change(&s, s.TaskTemplate.ContainerSpec)
		err := object.ValidateService(s)
		if want == "" {
			if err != nil {
				t.Errorf("refused a valid spec: %v", err)
			}
			continue
		}
		if err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

func TestValidateSecretAndConfig(t *testing.T) {
	name := swarm.Annotations{Name: "a.b-c_9"}
	for _, tt := range []struct {
		err  error
		want string
	}{
		{object.ValidateSecret(swarm.SecretSpec{Annotations: name, Data: make([]byte, 512000-1)}), ""},
		{object.ValidateSecret(swarm.SecretSpec{Annotations: name, Data: make([]byte, 512000)}), "secret data must be larger than 0 and less than 512000 bytes"},
		{object.ValidateSecret(swarm.SecretSpec{Annotations: name}), "secret data must be larger than 0 and less than 512000 bytes"},
		{object.ValidateSecret(swarm.SecretSpec{}), "name must be provided"},
		{object.ValidateSecret(swarm.SecretSpec{Annotations: swarm.Annotations{Name: "x-"}}), "invalid name, only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end character must be [a-zA-Z0-9]"},
		{object.ValidateSecret(swarm.SecretSpec{Annotations: name, Data: []byte{1}, Templating: &swarm.Driver{Name: "x"}}), "unrecognized template type"},
		{object.ValidateConfig(swarm.ConfigSpec{Annotations: name, Data: make([]byte, 1024000-1)}), ""},
		{object.ValidateConfig(swarm.ConfigSpec{Annotations: name, Data: make([]byte, 1024000)}), "config data must be larger than 0 and less than 1024000 bytes"},
	} {
		if got := fmt.Sprint(tt.err); got != tt.want && (tt.want != "" || tt.err != nil) {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 2))
	for i, k := range kinds {
		b, err := object.Encode(filled(r, k))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
	}
	f.Fuzz(func(t *testing.T, k uint8, b []byte) {
		kind := kinds[int(k)%len(kinds)]
		o := object.New(kind)
		if object.Decode(b, o) != nil {
			return
		}
		once, err := object.Encode(o)
		if err != nil {
			t.Fatalf("encode what was decoded: %v", err)
		}
		o2 := object.New(kind)
		if err := object.Decode(once, o2); err != nil {
			t.Fatalf("decode what was encoded: %v", err)
		}
		if twice, err := object.Encode(o2); err != nil || string(twice) != string(once) {
			t.Fatalf("encoded differently the second time (%v)", err)
		}
	})
}
