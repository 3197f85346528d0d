package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"skep/appliance/wire"
	"skep/store/object"
)

// inFront is container id of task t<id> on the network front.
func inFront(id, address string) object.Endpoint {
	return object.Endpoint{
		ID: id, Network: "bridge", Interface: "eth1",
		Overlays: []object.Overlay{{Network: "front", Name: "Front", Task: "t" + id, Addresses: []netip.Prefix{netip.MustParsePrefix(address)}}},
	}
}

// inMesh is such a container, a, that is in the mesh, too.
func inMesh() object.Endpoint {
	e := inFront("a", "10.0.1.9/24")
	e.Overlays = append(e.Overlays, object.Overlay{
		Network: "mesh", Name: "ingress", Task: "ta", Ingress: true, Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.3/24")},
	})
	return e
}

func want(t *testing.T, w *world, lines ...string) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(lines, w.lines()); diff != "" {
		t.Errorf("want -, got +:\n%s", diff)
	}
}

func TestPlane_MakesWhatIsSaidAndThenAcknowledges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		want(t, w)
		one := members(front(), []wire.NetworkService{web("10.0.1.2")}, task("ta", "n1", wire.EndpointPrepared, "10.0.1.3"))
		w.Set(view(7, one))
		want(t, w, "frames front:0", "names front:0")
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		want(t, w, "attach a", "plug a front eth0", "balancer /ns/a", "services /ns/a 10.0.1.2:", "answer a [front]")
		// Another task comes, and this one serves.
		two := members(front(), []wire.NetworkService{web("10.0.1.2")},
			task("ta", "n1", wire.EndpointActive, "10.0.1.3"), task("tb", "n2", wire.EndpointActive, "10.0.1.4"))
		w.Set(view(8, two))
		want(t, w, "frames front:1", "services /ns/a 10.0.1.2:10.0.1.3,10.0.1.4", "names front:2")
		// It drains: it can be sent to all the time.
		three := members(front(), []wire.NetworkService{web("10.0.1.2")},
			task("ta", "n1", wire.EndpointActive, "10.0.1.3"), task("tb", "n2", wire.EndpointDraining, "10.0.1.4"))
		w.Set(view(9, three))
		want(t, w, "frames front:1", "services /ns/a 10.0.1.2:10.0.1.3,10.0.1.4-", "names front:1")
		// It has gone: nothing leads to it before it cannot be sent to.
		four := members(front(), []wire.NetworkService{web("10.0.1.2")}, task("ta", "n1", wire.EndpointActive, "10.0.1.3"))
		w.Set(view(10, four))
		want(t, w, "frames front:1", "services /ns/a 10.0.1.2:10.0.1.3", "names front:1", "frames front:0")
		// What is the same is not done again.
		w.Set(view(11, four))
		want(t, w, "frames front:0", "names front:1")
		if diff := cmp.Diff([]uint64{7, 8, 9, 10, 11}, w.acked); diff != "" {
			t.Error(diff)
		}
	})
}

func TestPlane_AcknowledgesOnlyWhatItMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.failing("frames", errors.New("no"))
		w.Set(view(7, members(front(), nil)))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if tries := len(w.lines()) / 2; len(w.acked) > 0 || tries < 3 || tries > 6 {
			t.Errorf("acknowledged %v after %d tries", w.acked, tries)
		}
		w.failing("frames", nil)
		time.Sleep(latest)
		synctest.Wait()
		if !slices.Equal(w.acked, []uint64{7}) {
			t.Errorf("acknowledged %v", w.acked)
		}
	})
}

func TestConnect_WaitsForItsNetworks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1))
		began := time.Now()
		_, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24"))
		if !errors.Is(err, object.ErrTemporary) || !strings.Contains(err.Error(), "network Front is not known on this node yet") {
			t.Error(err)
		}
		if time.Since(began) != patience {
			t.Errorf("after %v", time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.Connect(ctx, inFront("a", "10.0.1.3/24")); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		_ = time.AfterFunc(time.Second, func() { w.Set(view(2, members(front(), nil))) })
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Error(err)
		}
	})
}

func TestConnect_ToAnEncryptedNetworkIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		n := front()
		n.Encrypted = true
		w.Set(view(1, members(n, nil)))
		want(t, w, "frames", "names")
		_, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24"))
		if !errdefs.IsFailedPrecondition(err) || !errors.Is(err, object.ErrUnfit) || errors.Is(err, object.ErrTemporary) {
			t.Error(err)
		}
		if text := fmt.Sprint(err); text != "network Front is encrypted, which this node cannot do: no xfrm" {
			t.Error(text)
		}
		want(t, w, "frames", "names")
	})
}

func TestConnect_LeavesNothingIfAStepFails(t *testing.T) {
	for _, step := range []string{"plug a mesh", "balancer", "services", "join", "answer"} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.run(t)
			e := task("ta", "n1", wire.EndpointPrepared, "10.0.0.3")
			e.Ports = []wire.MeshPort{{Protocol: "tcp", Published: 80, Target: 8080}}
			w.Set(view(1, members(front(), []wire.NetworkService{web("10.0.1.2")}), members(meshNetwork(), nil, e)))
			no := errors.New("no")
			w.failing(step, no)
			if _, err := w.Connect(t.Context(), inMesh()); !errors.Is(err, no) {
				t.Errorf("%s: %v", step, err)
			}
			synctest.Wait()
			log := w.linesOf("a")
			if i := slices.Index(log, "shut a"); i < 0 || !slices.Equal(log[len(log)-2:], []string{"unplug a", "unattach a"}) {
				t.Errorf("%s: %s", step, log)
			}
			if len(w.ends) > 0 || len(w.members) > 0 {
				t.Errorf("%s: left %v, %v", step, w.ends, w.members)
			}
			if _, made := w.frames["mesh"]; made {
				t.Errorf("%s: the mesh's network is left", step)
			}
			w.failing(step, nil)
			if _, err := w.Connect(t.Context(), inMesh()); err != nil {
				t.Errorf("%s: again: %v", step, err)
			}
		})
	}
}

func TestConnect_IsAQuestionTheSecondTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		e := task("ta", "n1", wire.EndpointPrepared, "10.0.0.3")
		e.Ports = []wire.MeshPort{{Protocol: "tcp", Published: 80, Target: 8080}}
		w.Set(view(1, members(front(), nil), members(meshNetwork(), nil, e)))
		at, err := w.Connect(t.Context(), inMesh())
		if err != nil {
			t.Fatal(err)
		}
		var devices []string
		for _, o := range at.Overlays {
			devices = append(devices, o.Network+" "+o.Interface+" "+o.MAC+" "+o.Gateways[0].String())
		}
		if diff := cmp.Diff([]string{"front eth0 02:42:0a:00:01:09 10.0.1.1", "mesh eth2 02:42:0a:00:00:03 10.0.0.1"}, devices); diff != "" {
			t.Error(diff)
		}
		if !slices.Equal(at.Nameserver, []string{"127.0.0.11"}) || !slices.Equal(at.Options, []string{"ndots:0"}) {
			t.Errorf("resolver: %v %v", at.Nameserver, at.Options)
		}
		synctest.Wait()
		if log := strings.Join(w.lines(), "; "); !strings.Contains(log, "join /ns/a eth2 10.0.0.3/24 [{tcp 8080 0}]") {
			t.Error(log)
		}
		again, err := w.Connect(t.Context(), inMesh())
		if diff := cmp.Diff(at, again, values()); err != nil || diff != "" {
			t.Error(err, diff)
		}
		want(t, w)
		if stats, err := w.Stats("a"); err != nil || stats["eth0"].RxBytes != 2 || stats["eth1"].RxBytes != 1 {
			t.Errorf("%+v, %v", stats, err)
		}
		// Asked for differently it is made anew.
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		made := []string{"shut a", "close /ns/a", "unplug a", "unattach a", "attach a", "plug a front eth0", "balancer /ns/a", "services /ns/a", "answer a [front]"}
		if diff := cmp.Diff(made, w.linesOf("a")); diff != "" {
			t.Error(diff)
		}
		if at, _ := w.Attachment("a"); len(at.Overlays) != 1 {
			t.Errorf("%+v", at)
		}
	})
}

func TestDisconnect_TheLastContainerTakesTheNetworkAlong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1, members(front(), nil)))
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.lines()
		// The swarm forgot the network, but the container has not ended.
		w.Set(view(2))
		want(t, w, "frames front:0", "names front:0")
		if err := w.Disconnect(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		want(t, w, "shut a", "close /ns/a", "unplug a", "unattach a", "frames front:0", "names", "frames")
		if err := w.Disconnect(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
	})
}

// A container that connects while the network is about to go keeps it.
func TestConnect_WhileTheNetworkGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1, members(front(), nil)))
		synctest.Wait()
		w.meanwhile("frames", func() {
			if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
				t.Error(err)
			}
		})
		w.Set(view(2))
		synctest.Wait()
		if _, made := w.frames["front"]; !made {
			t.Error("the network was taken from under a container")
		}
		if err := w.Disconnect(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if _, made := w.frames["front"]; made {
			t.Error("the network is left")
		}
	})
}

func TestPlane_KeepsWhatItHasWithoutAnAddressOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1, members(front(), nil)))
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.lines()
		homeless := view(2, members(front(), nil))
		delete(homeless.Hosts, "n1")
		w.Set(homeless)
		want(t, w, "frames front:0", "names front:0")
	})
}

func TestDisconnect_IsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1, members(front(), nil)))
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		w.failing("unplug", errors.New("no"))
		if err := w.Disconnect(t.Context(), "a"); err == nil {
			t.Error("no error")
		}
		synctest.Wait()
		w.lines()
		w.failing("unplug", nil)
		if err := w.Disconnect(t.Context(), "a"); err != nil {
			t.Error(err)
		}
		want(t, w, "shut a", "unplug a", "unattach a", "frames front:0", "names front:0")
	})
}

func TestRestart_FollowsTheContainersOfAnEarlierProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, inFront("a", "10.0.1.3/24"), object.Endpoint{ID: "plain", Network: "bridge"})
		w.run(t)
		if err := w.Retain(t.Context(), []string{"a", "plain"}); err != nil {
			t.Fatal(err)
		}
		want(t, w, "names retain [a plain]", "overlay retains [a plain]", "attach retains [a plain]")
		// The file is from before the service ran: nothing is cut.
		w.Set(stored(1, members(front(), nil)))
		time.Sleep(settling / 2)
		want(t, w)
		w.Set(view(2, members(front(), []wire.NetworkService{web("10.0.1.2")})))
		want(t, w, "frames front:0", "balancer /ns/a", "services /ns/a 10.0.1.2:", "names front:0", "answer a [front]")
		if diff := cmp.Diff([]uint64{2}, w.acked); diff != "" {
			t.Error(diff)
		}
	})
}

func TestRestart_DoesNotWaitForeverForANetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, inFront("a", "10.0.1.3/24"))
		w.run(t)
		w.Set(stored(1))
		time.Sleep(settling + time.Second)
		want(t, w, "frames", "names", "answer a [front]")
		// Out of the swarm nothing is waited for.
		w = newWorld(t, inFront("a", "10.0.1.3/24"))
		w.run(t)
		w.Set(nil)
		want(t, w, "frames", "names", "answer a [front]")
		if len(w.acked) > 0 {
			t.Errorf("acknowledged %v", w.acked)
		}
	})
}

func TestSuspend_CutsWhatIsOnADeadNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(view(1, members(front(), []wire.NetworkService{web("10.0.1.2")},
			task("tb", "n2", wire.EndpointActive, "10.0.1.4"), task("tc", "n3", wire.EndpointActive, "10.0.1.5"))))
		if _, err := w.Connect(t.Context(), inFront("a", "10.0.1.3/24")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.lines()
		w.Suspend("n2", true)
		want(t, w, "frames front:2", "services /ns/a 10.0.1.2:10.0.1.5", "names front:1")
		// Nobody else is left: the hint is not believed any more.
		w.Suspend("n3", true)
		want(t, w, "frames front:2", "services /ns/a 10.0.1.2:10.0.1.4,10.0.1.5", "names front:2")
		w.Suspend("n2", false)
		want(t, w, "frames front:2", "services /ns/a 10.0.1.2:10.0.1.4", "names front:1")
	})
}

// What the mesh is made on is there when it is looked at.
func TestPlane_MendsFramesFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.run(t)
		w.Set(stored(1))
		w.failing("mend frames", errors.New("no"))
		time.Sleep(look - time.Second)
		w.lines() // what was said is made
		time.Sleep(time.Second)
		synctest.Wait()
		if diff := cmp.Diff([]string{"mend frames", "mend mesh"}, w.lines()); diff != "" {
			t.Error(diff)
		}
	})
}
