package engine_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"

	"skep/appliance/manager/allocator"
	"skep/store"
	"skep/store/object"
)

// allocate does what the allocator would do by now.
func (m *manager) allocate(t *testing.T) {
	t.Helper()
	c, _ := allocator.New().Plan(nil, m.store.Since(0), time.Now())
	m.store.Write(t, func(tx *store.Tx) {
		for _, o := range c.Update {
			tx.Update(o)
		}
	})
}

func (m *manager) network(t *testing.T, name, rest string) (id string) {
	t.Helper()
	var made network.CreateResponse
	m.ok(t, "POST", "/networks/create", fmt.Sprintf(`{"Name":%q,"Driver":"overlay"%s}`, name, rest), &made)
	return made.ID
}

// refused calls, and wants this status and text.
func (m *manager) refused(t *testing.T, method, path, body string, status int, text string) {
	t.Helper()
	got, _, answer := m.call(t, method, path, body)
	if got != status || message(t, answer) != text {
		t.Errorf("%s %s %s: got %d %s, want %d %s", method, path, body, got, answer, status, text)
	}
}

// Of a removal and a service that needs what is removed, only one comes about.
func TestReferences_AreNotOvertaken(t *testing.T) {
	m := initialised(t)
	front := m.network(t, "front", "")
	var key struct{ ID string }
	m.ok(t, "POST", "/secrets/create", `{"Name":"key","Data":"aGlkZGVu"}`, &key)
	m.allocate(t)
	overtake := func(change func(tx *store.Tx)) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.meanwhile = change
	}
	onBoth := spec("web", "busybox")
	onBoth.TaskTemplate.Networks = []swarm.NetworkAttachmentConfig{{Target: front}}
	onBoth.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: key.ID, SecretName: "key"}}
	create := func(tx *store.Tx) { store.CreateService(tx, onBoth, nil) }
	for _, path := range []string{"/networks/front", "/secrets/key"} {
		overtake(create)
		if status, _, answer := m.call(t, "DELETE", path, ""); status != 400 || !strings.Contains(answer, "in use by") {
			t.Errorf("DELETE %s: got %d %s", path, status, answer)
		}
		web := m.service(t, "web")
		m.store.Write(t, func(tx *store.Tx) { tx.Delete(web) })
	}
	body := fmt.Sprintf(`{"Name":"web","TaskTemplate":{"Networks":[{"Target":"front"}],"ContainerSpec":{"Image":"busybox","Secrets":[{"SecretID":%q,"SecretName":"key","File":{"Name":"key"}}]}}}`, key.ID)
	for _, tt := range []struct {
		kind     object.Kind
		id, text string
	}{
		{object.KindNetwork, front, "network " + front + " not found"},
		{object.KindSecret, key.ID, "secret not found: key"},
	} {
		was := m.store.Snapshot().Get(tt.kind, tt.id)
		overtake(func(tx *store.Tx) { tx.Delete(was) })
		m.refused(t, "POST", "/services/create", body, 400, tt.text)
		m.store.Write(t, func(tx *store.Tx) { tx.Create(was.Clone()) })
	}
	m.ok(t, "POST", "/services/create", body, nil)
}

func TestNetworks_OnlyThoseThatNobodyUsesAreRemoved(t *testing.T) {
	m := initialised(t)
	id := m.network(t, "front", "")
	m.allocate(t)
	var made swarm.ServiceCreateResponse
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},"Networks":[{"Target":"front","Aliases":["www"]}]}}`, &made)
	if got := m.service(t, "web").Spec.TaskTemplate.Networks[0].Target; got != id {
		t.Errorf("the service refers to %q, want the network's ID", got)
	}
	m.refused(t, "DELETE", "/networks/front", "", 400, fmt.Sprintf("network %s is in use by service %s", id, made.ID))

	// Its service lets go of the network, but its tasks do not yet.
	web := m.service(t, "web")
	m.store.Write(t, func(tx *store.Tx) {
		task := &object.Task{ID: "running", ServiceID: made.ID, SpecVersion: web.SpecVersion, NodeID: m.nodeID, DesiredState: swarm.TaskStateRunning}
		task.Status.State = swarm.TaskStateRunning
		task.Networks = []object.TaskNetwork{{ID: id, Addresses: []netip.Prefix{netip.MustParsePrefix("10.20.1.3/24")}}}
		tx.Create(task)
		spec := object.Copy(web.Spec)
		spec.TaskTemplate.Networks = nil
		store.UpdateService(tx, web, spec, nil)
	})
	m.refused(t, "DELETE", "/networks/front", "", 400, fmt.Sprintf("network %s is in use by task running", id))

	// The task ends: the network goes as far as anybody can see.
	m.store.Write(t, func(tx *store.Tx) {
		task, _ := m.store.Snapshot().Tasks.Get("running")
		task = task.Clone().(*object.Task)
		task.DesiredState = swarm.TaskStateShutdown
		tx.Update(task)
	})
	m.ok(t, "DELETE", "/networks/front", "", nil)
	if n, ok := m.store.Snapshot().Networks.Get(id); !ok || !n.PendingDelete {
		t.Errorf("the network under a task that ends is %+v", n)
	}
	m.refused(t, "GET", "/networks/front", "", 404, "network front not found")
	m.refused(t, "DELETE", "/networks/"+id, "", 404, fmt.Sprintf("network %s not found", id))
	m.refused(t, "POST", "/services/create", `{"Name":"other","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},"Networks":[{"Target":"`+id+`"}]}}`, 400, "network "+id+" not found")
	if other := m.network(t, "front", ""); other == id {
		t.Error("a new network has the ID of the old one")
	}

	guest := m.network(t, "open", `,"Attachable":true`)
	m.store.Write(t, func(tx *store.Tx) {
		tx.Create(&object.Guest{ID: "g", NodeID: m.nodeID, ContainerID: "box", Network: object.TaskNetwork{ID: guest}})
	})
	m.refused(t, "DELETE", "/networks/open", "", 400, fmt.Sprintf("network %s is in use by container box", guest))
	var pruned network.PruneReport
	m.ok(t, "POST", "/networks/prune", "", &pruned)
	if got := strings.Join(pruned.NetworksDeleted, " "); got != "front" {
		t.Errorf("pruned %q, want front", got)
	}
}

func TestNetworks_AServiceThatMayRollBackHoldsItsFormerOnes(t *testing.T) {
	m := initialised(t)
	id := m.network(t, "front", "")
	var made swarm.ServiceCreateResponse
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},"Networks":[{"Target":"front"}]}}`, &made)
	web := m.service(t, "web")
	m.store.Write(t, func(tx *store.Tx) {
		spec := object.Copy(web.Spec)
		spec.TaskTemplate.Networks = nil
		store.UpdateService(tx, web, spec, nil).UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateUpdating}
	})
	m.refused(t, "DELETE", "/networks/front", "", 400, fmt.Sprintf("network %s is in use by service %s", id, made.ID))
	web = m.service(t, "web")
	m.store.Write(t, func(tx *store.Tx) {
		web = web.Clone().(*object.Service)
		web.UpdateStatus.State = swarm.UpdateStateCompleted
		tx.Update(web)
	})
	m.ok(t, "DELETE", "/networks/front", "", nil)
	m.refused(t, "POST", fmt.Sprintf("/services/web/update?version=%d&rollback=previous", m.service(t, "web").Version.Index), `{"Name":"web"}`, 400, "network "+id+" not found")
}

func TestNetworks_OneGoesRightAfterItsServices(t *testing.T) {
	m := initialised(t)
	front, back := m.network(t, "front", ""), m.network(t, "back", "")
	var made swarm.ServiceCreateResponse
	m.ok(t, "POST", "/services/create", `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},"Networks":[{"Target":"front"},{"Target":"back"}]}}`, &made)
	m.store.Write(t, func(tx *store.Tx) {
		task := &object.Task{ID: "running", ServiceID: made.ID, NodeID: m.nodeID, DesiredState: swarm.TaskStateRunning}
		task.Status.State = swarm.TaskStateRunning
		task.Networks = []object.TaskNetwork{{ID: front}, {ID: back}}
		tx.Create(task)
	})
	var pruned network.PruneReport
	m.ok(t, "POST", "/networks/prune", "", &pruned)
	if len(pruned.NetworksDeleted) > 0 {
		t.Errorf("pruned %v under a service", pruned.NetworksDeleted)
	}
	m.ok(t, "DELETE", "/services/web", "", nil)
	m.ok(t, "DELETE", "/networks/front", "", nil)
	m.ok(t, "POST", "/networks/prune", "", &pruned)
	if got := strings.Join(pruned.NetworksDeleted, " "); got != "back" {
		t.Errorf("pruned %q, want back", got)
	}
	for _, id := range []string{front, back} {
		if n, ok := m.store.Snapshot().Networks.Get(id); !ok || !n.PendingDelete {
			t.Errorf("a network under a task that nobody has told to end is %+v", n)
		}
	}
}

func TestNetworks_WhatCannotBeIsRefused(t *testing.T) {
	m := initialised(t)
	m.network(t, "front", `,"IPAM":{"Config":[{"Subnet":"10.9.0.0/24"}]},"Options":{"com.docker.network.driver.overlay.vxlanid_list":"7000,7001"}`)
	m.allocate(t)
	create := func(rest string) string { return `{"Name":"x","Driver":"overlay",` + rest + `}` }
	subnet := func(rest string) string { return create(`"IPAM":{"Config":[{` + rest + `}]}`) }
	for body, want := range map[string]struct {
		status int
		text   string
	}{
		create(`"Scope":"local"`):                                                                   {400, "overlay networks are of scope swarm"},
		create(`"EnableIPv4":false`):                                                                {400, "IPv4 cannot be disabled in a Swarm scoped network"},
		create(`"ConfigFrom":{"Network":"y"}`):                                                      {501, "networks that only hold a configuration are not supported yet"},
		create(`"IPAM":{"Driver":"odd"}`):                                                           {404, `plugin "odd" not found`},
		create(`"Ingress":true`):                                                                    {409, "ingress network (" + m.ingress(t) + ") is already present"},
		create(`"Ingress":true,"Internal":true`):                                                    {400, "ingress network cannot be internal"},
		subnet(`"Gateway":"10.8.0.1"`):                                                              {400, "ipam configuration: every range and gateway needs a subnet"},
		subnet(`"Subnet":"10.8.0.0/31"`):                                                            {400, "invalid subnet 10.8.0.0/31: it has fewer than four addresses"},
		subnet(`"Subnet":"10.8.0.0/24","IPRange":"10.8.1.0/25"`):                                    {400, "ipam configuration: subnet 10.8.0.0/24 does not contain range 10.8.1.0/25"},
		subnet(`"Subnet":"10.8.0.0/24","Gateway":"10.8.0.255"`):                                     {400, "ipam configuration: subnet 10.8.0.0/24 does not contain gateway 10.8.0.255"},
		subnet(`"Subnet":"10.8.0.0/24","AuxiliaryAddresses":{"a":"10.7.0.1"}`):                      {400, "no matching subnet for aux-address 10.7.0.1"},
		subnet(`"Subnet":"10.8.0.0/24","Gateway":"10.8.0.9","AuxiliaryAddresses":{"a":"10.8.0.9"}`): {400, "auxiliary address 10.8.0.9 is the gateway's"},
		subnet(`"Subnet":"10.8.0.0/24"},{"Subnet":"10.8.0.128/25"`):                                 {400, "subnets 10.8.0.0/24 and 10.8.0.128/25 overlap"},
		subnet(`"Subnet":"10.9.0.64/26"`):                                                           {400, "invalid pool request: Pool overlaps with other one on this address space: 10.9.0.0/24 is in use by network front"},
		create(`"EnableIPv6":false,"IPAM":{"Config":[{"Subnet":"fd00:8::/64"}]}`):                   {400, "subnet fd00:8::/64 needs IPv6, which is disabled for the network"},
		create(`"Options":{"com.docker.network.driver.overlay.vxlanid_list":"7000"}`):               {400, "VXLAN ID 7000 is in use by network front"},
		create(`"Options":{"com.docker.network.driver.overlay.vxlanid_list":"16777216"}`):           {400, `VXLAN ID "16777216" is not a number from 1 to 16777215`},
		create(`"EnableIPv6":true,"Options":{"com.docker.network.driver.mtu":"1279"}`):              {400, `invalid MTU "1279": it is a number from 1280 to 65535`},
		create(`"Options":{"encryptd":""}`):                                                         {400, `unknown option "encryptd" of an overlay network: there are encrypted, com.docker.network.driver.mtu and com.docker.network.driver.overlay.vxlanid_list`},
		`{"Name":"default","Driver":"overlay"}`:                                                     {403, "default is a pre-defined network and cannot be created"},
	} {
		m.refused(t, "POST", "/networks/create", body, want.status, want.text)
	}
	service := func(networks, endpoint string) string {
		return `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"busybox"},"Networks":[` + networks + `]}` + endpoint + `}`
	}
	for body, want := range map[string]string{
		service(`{"Target":"front"},{"Target":"front"}`, ""):                          "network front is given more than once",
		service(`{"Target":"host"},{"Target":"front"}`, ""):                           "network host cannot be used together with others",
		service(`{"Target":"host"}`, `,"EndpointSpec":{"Ports":[{"TargetPort":80}]}`): "a service on network host cannot publish ports in ingress mode",
		service(`{"Target":"ingress"}`, ""):                                           `Service cannot be explicitly attached to the ingress network "ingress"`,
	} {
		m.refused(t, "POST", "/services/create", body, 400, want)
	}
	// IPv6 that is asked for by a subnet alone, as in stack files.
	m.network(t, "six", `,"IPAM":{"Config":[{"Subnet":"fd00:6::/64"}]}`)
	var six network.Inspect
	if m.ok(t, "GET", "/networks/six", "", &six); !six.EnableIPv6 {
		t.Error("a network with an IPv6 subnet has no IPv6")
	}
}

func (m *manager) ingress(t *testing.T) string {
	t.Helper()
	n, err := m.store.Snapshot().Networks.Find("ingress")
	if err != nil {
		t.Fatal(err)
	}
	return n.ID
}

func TestNetworks_BeforeAndAfterTheyAreAllocated(t *testing.T) {
	m := initialised(t)
	m.network(t, "front", `,"Internal":true,"Labels":{"a":"b"},"Options":{"encrypted":""},"EnableIPv6":true`)
	show := func() (n network.Inspect) {
		m.ok(t, "GET", "/networks/front", "", &n)
		return n
	}
	if n := show(); len(n.IPAM.Config) != 0 || n.Options["encrypted"] != "" || len(n.Options) != 1 || n.Labels["a"] != "b" || !n.Internal || !n.EnableIPv6 {
		t.Errorf("before: %+v", n)
	}
	m.allocate(t)
	n := show()
	if len(n.IPAM.Config) != 2 || n.IPAM.Config[0].Subnet.String() != "10.20.1.0/24" || n.Options["com.docker.network.driver.overlay.vxlanid_list"] != "4097" || len(n.Options) != 2 {
		t.Errorf("after: %+v", n)
	}
}
